# SPDX-License-Identifier: Apache-2.0
"""Groups that are named, copied, saved, forgotten or compiled around; parameters that are sharded."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.spawn import on_ranks
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import pycl
import pycl.functional as F
from pycl.core import notices
from pycl.distributed import Ring
from pycl.testing import assert_ddp_equivalent

SIZES = (5, 3)


def batch(rank: int, width: int = 6) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, sum(SIZES), width).split(SIZES, 1)[rank].clone()


# ---- by name


def by_name(rank: int, world: int) -> list[float]:
    losses = [
        pycl.NTXentLoss(group=group) for group in ("world", Ring("world"), dist.group.WORLD, Ring(dist.group.WORLD))
    ]
    losses += [copy.deepcopy(loss) for loss in losses]
    losses += [pickle.loads(pickle.dumps(loss)) for loss in losses]
    saved = io.BytesIO()
    torch.save(losses[2], saved)
    saved.seek(0)
    losses.append(torch.load(saved, weights_only=False))
    both = dist.new_group([0, 1])
    losses += [copy.deepcopy(pycl.NTXentLoss(group=both)), torch.optim.swa_utils.AveragedModel(losses[2])]
    return [loss(batch(rank)).item() for loss in losses]


def test_a_group_by_name_in_copies_and_in_files() -> None:
    found = torch.tensor(on_ranks(2, by_name))
    mean = F.nt_xent(torch.cat([batch(0), batch(1)], 1)).expand(found.shape[1])
    torch.testing.assert_close(found.mean(0), mean)


def test_the_world_of_one_process_is_this_process() -> None:
    assert torch.equal(F.nt_xent(batch(0), group="world"), F.nt_xent(batch(0)))
    assert torch.equal(pycl.NTXentLoss(group=Ring("world"))(batch(0)), F.nt_xent(batch(0)))


def of_another_run(rank: int, world: int) -> str:
    loss = pycl.NTXentLoss(group=dist.new_group([0, 1]))
    saved = pickle.dumps(loss)
    dist.barrier()  # a rank that still connects would find nobody
    dist.destroy_process_group(loss.group)
    try:
        pickle.loads(saved)(batch(rank))
    except RuntimeError as error:
        return str(error)
    return "nothing"


def test_a_group_that_is_gone_is_named() -> None:
    for message in on_ranks(2, of_another_run):
        assert "is of another run, make it again and set loss.group" in message


# ---- forgotten


def forgotten(rank: int, world: int) -> list[list[str]]:
    calls = [
        lambda: pycl.NTXentLoss()(batch(rank)),
        lambda: F.clip(*batch(rank), 5.0),
        lambda: F.clip(*batch(rank), 5.0, group="local"),
        lambda: F.clip(*batch(rank), 5.0, group="world"),
        lambda: pycl.metrics.uniformity(batch(rank)[0]),
    ]
    found = []
    for call in calls:
        notices._said.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
            call()
        found.append([str(w.message) for w in said if "group" in str(w.message)])
    return found


def test_ranks_without_a_group_are_noticed_once() -> None:
    for found in on_ranks(2, forgotten):
        assert [len(messages) for messages in found] == [1, 1, 0, 0, 0]
        assert found[0] == [found[1][0].replace("clip", "nt_xent")]
        assert "group='world' takes those of all ranks" in found[0][0]


# ---- compiled around

CALLS: dict[str, Any] = {
    "nt_xent": lambda z: F.nt_xent(z, group="world"),
    "clip": lambda z: F.clip(z[0], z[1], 5.0, group="world"),
    "siglip": lambda z: F.siglip(z[0], z[1], 5.0, -5.0, group="world"),
    "mv_dhel": lambda z: F.mv_dhel(z, group=Ring("world")),
}
BATCHES = ((8, 8), (5, 5), (8, 6), (5, 8), (1, 3))


def compiled(rank: int, world: int, name: str) -> float:
    loss, worst = CALLS[name], 0.0
    normalized = lambda z: loss(torch.nn.functional.normalize(z, dim=-1))  # noqa: E731
    outside = torch.compile(normalized, backend="aot_eager")

    def with_backward(z: Tensor) -> Tensor:
        value = normalized(z)
        value.backward()
        return value.detach()

    inside = torch.compile(with_backward, backend="aot_eager")
    for sizes in BATCHES:
        z = torch.randn(2, sizes[rank], 6)
        leaves = [z.clone().requires_grad_() for _ in range(3)]
        values = [normalized(leaves[0]), outside(leaves[1])]
        for value in values:
            value.backward()
        values.append(inside(leaves[2]))
        for value, leaf in zip(values, leaves, strict=True):
            worst = max(worst, (value - values[0]).abs().item(), (leaf.grad - leaves[0].grad).abs().max().item())
    return worst


@pytest.mark.parametrize("name", CALLS)
def test_a_compiled_step_with_batches_of_any_size(name: str) -> None:
    assert max(on_ranks(2, compiled, name, seconds=240)) < 1e-6


# ---- sharded parameters


def sharded(rank: int, world: int, version: int) -> tuple[float, float, float, list[int]]:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"encoder": torch.nn.Linear(6, 4), "loss": pycl.NTXentLoss(0.2, learnable_temperature=True, group="world")}
    )

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, z: Tensor) -> Tensor:
            return self.parts["loss"](self.parts["encoder"](z))

    step = Step()
    wanted = copy.deepcopy(step)
    if version == 1:
        step = FullyShardedDataParallel(step, device_id=torch.device("cpu"), use_orig_params=True)  # type: ignore[assignment]
    else:
        fully_shard(step)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (step, wanted)]
    values = []
    for _ in range(2):
        losses = [step(batch(rank)), wanted(batch(rank))]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            loss.backward()
            if optimizer is optimizers[1]:
                for parameter in wanted.parameters():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world
            optimizer.step()
            optimizer.zero_grad()
        values = [loss.item() for loss in losses]
    return (*values, wanted.parts["loss"].temperature.item(), list(model["loss"].log_temperature.shape))  # type: ignore[return-value]


@pytest.mark.parametrize("version", [1, 2])
def test_a_learnable_temperature_is_sharded(version: int) -> None:
    for value, wanted, temperature, _ in on_ranks(2, sharded, version):
        assert value == pytest.approx(wanted, abs=1e-5)
        assert temperature != pytest.approx(0.2, abs=1e-4)


# ---- a loss of one's own


@pycl.together
def my_loss(*views: Tensor, temperature: float = 0.1, group: Any = None) -> Tensor:
    """The one of the README."""
    points, n_views = pycl.stack_views(views)
    sets = {"denominator": pycl.Pairs.NEG_SAME_VIEW, "positives": pycl.Pairs.POS_OTHER_VIEW}
    s = pycl.pair_stats(points, None, 1 / temperature, **sets, normalize=True, group=group)
    return pycl.reduce(s.lse - s.pos_sum / (n_views - 1), "mean", group)


def test_a_loss_of_one_s_own_on_ranks() -> None:
    assert_ddp_equivalent(partial(my_loss, group="world"), shares=(20, 4))
    with pytest.raises(AssertionError):
        assert_ddp_equivalent(my_loss)
