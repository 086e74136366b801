# SPDX-License-Identifier: Apache-2.0
"""The equivalence check itself: what it accepts, what it refuses, and that it notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import spawn  # noqa: F401  its fork server has imported torch
from torch import Tensor

import pycl
from pycl import functional as F
from pycl.testing import assert_ddp_equivalent, compare_with_one_process


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks in a second instead of four; one test has them spawned, as users do."""
    start = pycl.testing.start_processes

    def start_forked(*args: Any, **options: Any) -> Any:
        return start(*args, **options | {"start_method": "forkserver"})

    monkeypatch.setattr(pycl.testing, "start_processes", start_forked)


def with_labels(z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
    return F.sup_con((z1, z2), labels, group=dist.group.WORLD)


def scaled(z1: Tensor, z2: Tensor) -> Tensor:
    """What some libraries do: the loss of all on every rank, and the gradient of this rank's part of it."""
    loss = F.info_nce(z1, z2, group=dist.group.WORLD)
    return loss / dist.get_world_size() + loss.detach() * (1 - 1 / dist.get_world_size())


def test_losses_of_ranks_are_those_of_one_process() -> None:
    assert_ddp_equivalent(pycl.NTXentLoss(0.2, learnable_temperature=True))


@pytest.mark.usefixtures("forked")
def test_uneven_shares_and_labels() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(9, 4), torch.randn(9, 4), torch.randint(0, 3, (9,))
    assert_ddp_equivalent(with_labels, inputs, world_size=3, shares=(4, 1, 4))


@pytest.mark.usefixtures("forked")
def test_a_wrong_scale_is_seen() -> None:
    found = compare_with_one_process(scaled)
    assert found.value == pytest.approx(1)
    assert found.scale == pytest.approx(0.5)
    assert found.cosine == pytest.approx(1)


@pytest.mark.usefixtures("forked")
def test_a_loss_of_the_local_batch_fails() -> None:
    with pytest.raises(
        AssertionError, match=r"on 2 processes local_batch is not what it is on one: loss x 0\.\d+, gradient"
    ):
        assert_ddp_equivalent(local_batch)


def local_batch(z1: Tensor, z2: Tensor) -> Tensor:
    return F.nt_xent((z1, z2))


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="loss must be a module or a function of a file"):
        assert_ddp_equivalent(lambda a, b: a.sum())
    with pytest.raises(ValueError, match="world_size must be at least 2, got 1"):
        assert_ddp_equivalent(local_batch, world_size=1)
    with pytest.raises(ValueError, match="inputs must split evenly over world_size = 2, got 5"):
        assert_ddp_equivalent(local_batch, torch.randn(2, 5, 3).unbind())
    with pytest.raises(ValueError, match=r"shares must be 2 numbers >= 1 with a sum of 5, got \[5, 0\]"):
        assert_ddp_equivalent(local_batch, torch.randn(2, 5, 3).unbind(), shares=(5, 0))
