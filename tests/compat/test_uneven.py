# SPDX-License-Identifier: Apache-2.0
"""Batches of different sizes on the ranks: what DistributedDataParallel averages is the gradient of one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.spawn import on_ranks
from parity import declare_torchvision, embeddings, peer
from torch import Tensor

declare_torchvision()

import pycl.compat.lightly as lightly  # noqa: E402
import pycl.compat.open_clip as open_clip  # noqa: E402
import pycl.compat.solo as solo  # noqa: E402

SIZES, D = (5, 3, 1), 4
STARTS = [sum(SIZES[:rank]) for rank in range(len(SIZES))]


def lopsided(u0: Tensor, u1: Tensor) -> Tensor:
    """A weight of each sample alone: the batch has no part in it."""
    return 1 + u0[:, 0] - 0.3 * u1[:, 1]


def simclr(z0: Tensor, z1: Tensor, samples: Tensor) -> Tensor:
    return solo.simclr_loss_func(torch.cat((z0, z1)), samples.repeat(2), 0.3)


def supervised(z0: Tensor, z1: Tensor, samples: Tensor) -> Tensor:
    return solo.simclr_loss_func(torch.cat((z0, z1)), (samples % 3).repeat(2), 0.3)


def nnclr(z0: Tensor, z1: Tensor, samples: Tensor) -> Tensor:
    return solo.nnclr_loss_func(z0, z1, 0.3)


def mocov3(z0: Tensor, z1: Tensor, samples: Tensor) -> Tensor:
    return solo.mocov3_loss_func(z0, z1.detach(), 0.3)  # keys are a momentum encoder's


def contrast(name: str, *args: Any) -> Callable[..., Tensor]:
    return lambda z0, z1, _: getattr(lightly, name)(0.3, *args, gather_distributed=True)(z0, z1)


def images_and_texts(name: str, z0: Tensor, z1: Tensor, samples: Tensor, **options: Any) -> Tensor:
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rank = torch.distributed.get_rank() if world > 1 else 0
    return getattr(open_clip, name)(rank=rank, world_size=world, **options)(z0, z1, 3.0, -1.0)


CALLS: dict[str, Callable[..., Tensor]] = {
    "solo simclr": simclr,
    "solo simclr of labels": supervised,
    "solo nnclr": nnclr,
    "solo mocov3": mocov3,
    "lightly NTXentLoss": contrast("NTXentLoss"),
    "lightly DCLLoss": contrast("DCLLoss"),
    "lightly DCLLoss weighted": contrast("DCLLoss", lopsided),
    "open_clip ClipLoss": partial(images_and_texts, "ClipLoss", gather_with_grad=True),
    "open_clip ClipLoss local": partial(images_and_texts, "ClipLoss", gather_with_grad=True, local_loss=True),
    "open_clip SigLipLoss": partial(images_and_texts, "SigLipLoss"),
}


def measure(name: str, start: int, size: int) -> tuple[float, Tensor]:
    """The loss of some of the samples and its gradient at both views, [2, size, D]."""
    z = torch.stack([embeddings(sum(SIZES), D, seed) for seed in range(2)])[:, start : start + size]
    z.requires_grad_()
    loss = CALLS[name](z[0], z[1], torch.arange(start, start + size))
    loss.backward()
    return loss.item(), z.grad


def on_three(rank: int, world: int) -> dict[str, tuple[float, Tensor]]:
    return {name: measure(name, STARTS[rank], SIZES[rank]) for name in CALLS}


@pytest.fixture(scope="module")
def of_ranks() -> list[dict[str, tuple[float, Tensor]]]:
    return on_ranks(len(SIZES), on_three, seconds=120)


@pytest.mark.parametrize("name", CALLS)
def test_the_mean_of_the_ranks_is_one_process(name: str, of_ranks: list[dict[str, tuple[float, Tensor]]]) -> None:
    loss, gradient = measure(name, 0, sum(SIZES))
    parts = [found[name] for found in of_ranks]
    assert sum(value for value, _ in parts) / len(SIZES) == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(torch.cat([g for _, g in parts], 1) / len(SIZES), gradient, rtol=1e-9, atol=1e-12)


def codes(rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    scores = embeddings(sum(SIZES), 6, 0).split(SIZES)[rank]
    loss = lightly.SwaVLoss(sinkhorn_gather_distributed=True)([scores, scores.flip(1)], [])
    return lightly.sinkhorn(scores, gather_distributed=True), solo.SinkhornKnopp()(scores), loss


def test_codes_are_shared() -> None:
    scores = embeddings(sum(SIZES), 6, 0)
    found = on_ranks(len(SIZES), codes, seconds=120)
    for k in range(2):
        torch.testing.assert_close(torch.cat([rank[k] for rank in found]), lightly.sinkhorn(scores))
    mean = sum(rank[2] * size for rank, size in zip(found, SIZES, strict=True)) / sum(SIZES)
    torch.testing.assert_close(mean, lightly.SwaVLoss()([scores, scores.flip(1)], []))


def refused(rank: int, world: int) -> list[str]:
    peer("open_clip.loss")
    bank = lightly.NTXentLoss(0.3, (8, D), gather_distributed=True).double()
    taught = open_clip.DistillClipLoss(rank=rank, world_size=world)
    z = embeddings(SIZES[rank], D, rank).requires_grad_()
    said = []
    for call in (lambda: bank(z, 2 * z), lambda: taught(z, z, 3.0, z.detach(), z.detach(), 3.0)):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    return said


def test_what_takes_even_batches_alone() -> None:
    peer("open_clip.loss")
    said = "the number of samples must be the same on all ranks of the group, got 5 on rank 0, 3 on rank 1, 1 on rank 2"
    assert on_ranks(len(SIZES), refused, seconds=120) == [[said] * 2] * len(SIZES)
