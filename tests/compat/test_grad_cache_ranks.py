# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.grad_cache on two ranks against GradCache: on each the same loss and the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grad_cache_peer import declare_grad_cache, grad_cache
from helpers.spawn import on_ranks
from parity import Case, assert_same, embeddings, measure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

declare_grad_cache()

from pycl.compat import grad_cache as ours  # noqa: E402
from pycl.compat.grad_cache import functional, loss  # noqa: E402

TARGET = torch.tensor([3, 1, 0, 2, 9, 8, -100, 5, 7, 6])
OPTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "mean": (0, {}),
    "sum": (0, {"reduction": "sum"}),
    "none": (0, {"reduction": "none"}),
    "hard negatives": (2, {}),
    "hard negatives summed": (1, {"reduction": "sum"}),
    "targets": (0, {"target": TARGET}),
}


def of_rank(rank: int, per_query: int) -> tuple[Tensor, Tensor]:
    return embeddings(5, 4, 1 + 2 * rank), embeddings(5 * per_query, 4, 2 + 2 * rank)


def gathered(module: Any, x: Tensor, y: Tensor) -> Tensor:
    function = module.gather_input_tensor(lambda x, y: cross_entropy(x @ y.t(), torch.arange(len(x))))
    return function(x, y)


def step(module: Any, losses: Any, rank: int) -> dict[str, Any]:
    """A step of models in DistributedDataParallel."""
    torch.manual_seed(0)
    models = [DistributedDataParallel(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()) for _ in range(2)]
    run = module.GradCache(models, 2, losses.DistributedContrastiveLoss())
    value = run(*of_rank(rank, 1), no_sync_except_last=True)
    gradients = [p.grad.tolist() for model in models for p in model.parameters()]
    return {"shape": [], "loss": value.item(), "gradients": gradients}


def on_two(rank: int, world: int, live: bool) -> dict[str, list[dict[str, Any]]]:
    modules = [loss, grad_cache("loss")] if live else [loss]
    found = {}
    for name, (hard, options) in OPTIONS.items():
        case = Case(lambda m, *x: m.DistributedContrastiveLoss(hard)(*x, **options), of_rank(rank, hard + 1))  # noqa: B023
        found[name] = [measure(case, module) for module in modules]
    if live:
        case = Case(gathered, of_rank(rank, 1))
        found["gathered"] = [measure(case, module) for module in (functional, grad_cache("functional"))]
        found["step"] = [step(ours, loss, rank), step(grad_cache("grad_cache"), grad_cache("loss"), rank)]
    return found


@pytest.fixture(scope="module")
def of_ranks() -> list[dict[str, list[dict[str, Any]]]]:
    grad_cache("loss")
    return on_ranks(2, on_two, True, seconds=120)


@pytest.mark.parametrize("name", [*OPTIONS, "gathered", "step"])
def test_two_ranks(name: str, of_ranks: list[dict[str, Any]]) -> None:
    for found in of_ranks:
        assert_same(*found[name], 1e-9)


def test_the_gradient_is_that_of_one_process_for_the_own_vectors() -> None:
    ranks = on_ranks(2, on_two, False, seconds=120)
    for name in ("mean", "sum", "hard negatives"):
        hard, options = OPTIONS[name]
        x, y = (
            torch.cat(parts).requires_grad_() for parts in zip(*(of_rank(r, hard + 1) for r in range(2)), strict=True)
        )
        whole = loss.SimpleContrastiveLoss(hard)(x, y, **options)
        whole.backward()
        for k, wanted in enumerate((x.grad, y.grad)):
            parts = [torch.tensor(found[name][0]["gradients"][k], dtype=wanted.dtype) for found in ranks]
            torch.testing.assert_close(torch.cat(parts), wanted)
        assert [found[name][0]["loss"] for found in ranks] == pytest.approx([whole.item()] * 2)


def uneven(rank: int, world: int) -> str:
    try:
        loss.DistributedContrastiveLoss(1)(embeddings(3 + rank, 4, 1), embeddings(2 * (3 + rank), 4, 2))
    except ValueError as error:
        return str(error)
    return ""


def test_batches_of_two_sizes() -> None:
    said = "the number of samples must be the same on all ranks of the group, got 3 on rank 0, 4 on rank 1"
    assert on_ranks(2, uneven, seconds=120) == [said] * 2
