# SPDX-License-Identifier: Apache-2.0
"""The gradient cache on two processes: each DistributedDataParallel module communicates once a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.grad_cache_cases import WIDTH, Encoder, assert_same, batch, cosine, plain
from helpers.spawn import on_ranks
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import pycl

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
ROWS = (11, 5)  # of each rank: four chunks and two


class Clip(nn.Module):
    """Two towers and a scale in one module, which is what DistributedDataParallel wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"image": Encoder(nn.Dropout(0.2)), "text": Encoder()})
        self.logit_scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: Tensor, tower: str) -> Tensor:
        return self.towers[tower](x)


def parallel(module: nn.Module, **options: Any) -> DistributedDataParallel:
    """The module on all ranks; ``reductions`` counts the buckets it sends, of which it has one."""
    wrapped = DistributedDataParallel(module, **options)
    wrapped.reductions = []

    def count(_, bucket):  # type: ignore[no-untyped-def]  # annotations that are strings are refused
        wrapped.reductions.append(bucket.index())
        return allreduce_hook(dist.group.WORLD, bucket)

    wrapped.register_comm_hook(None, count)
    return wrapped


def alone(module: nn.Module, **_: Any) -> nn.Module:
    return module


def shared(module: nn.Module, wrap: Callable[..., Any]) -> Any:
    model = wrap(module)
    return [model], (cosine, model, model)


def functions(modules: nn.ModuleList, wrap: Callable[..., Any]) -> Any:
    """Both functions refer to three modules, and each runs one of them."""
    models = SimpleNamespace(a=wrap(modules[0]), b=wrap(modules[1]), idle=wrap(nn.Linear(1, 1)))
    return [models.a, models.b], (cosine, lambda x: models.a(x), lambda x: models.b(x))


def detached(module: nn.Module, wrap: Callable[..., Any]) -> Any:
    """The tower with the last chunk passes no gradient."""
    model = wrap(module)
    return [model], (lambda a, b: cosine(a, b.detach()), model, model)


def clip(module: Clip, wrap: Callable[..., Any]) -> Any:
    model = wrap(module, find_unused_parameters=True)

    def loss(image: Tensor, text: Tensor) -> Tensor:
        return pycl.functional.clip(image, text, module.logit_scale.exp(), normalize=True)

    return [model], (loss, lambda x: model(x, "image"), lambda x: model(x, tower="text"))


def compiled(module: nn.Module, wrap: Callable[..., Any]) -> Any:
    model = wrap(module)
    run = torch.compile(model, backend="eager")
    return [model], (cosine, run, run)


def around_compiled(module: nn.Module, wrap: Callable[..., Any]) -> Any:
    model = wrap(torch.compile(module, backend="eager"))
    return [model], (cosine, model, model)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any]]] = {
    "shared": (lambda: Encoder(nn.BatchNorm1d(WIDTH)), shared),
    "functions": (lambda: nn.ModuleList([Encoder(), Encoder()]), functions),
    "detached": (lambda: Encoder(nn.Dropout(0.5)), detached),
    "clip": (Clip, clip),
    "compiled": (Encoder, compiled),
    "around compiled": (Encoder, around_compiled),
}


def run_case(rank: int, world: int, name: str) -> list[dict[str, Any]]:
    """Of three steps: how often modules communicated, their gradients, and the mean of the ranks' plain gradients."""
    build, case = CASES[name]
    torch.manual_seed(0)
    module = build()
    twin = deepcopy(module)
    wrapped, (loss, *encoders) = case(module, parallel)
    _, (twin_loss, *twin_encoders) = case(twin, alone)
    steps = []
    for chunk_size in (3, 3, 11):
        x, y = batch(2, ROWS[rank])
        module.zero_grad()
        twin.zero_grad()
        torch.manual_seed(rank)
        pycl.cached_step(loss, (encoders[0], x), (encoders[1], y), chunk_size=chunk_size)
        torch.manual_seed(rank)
        plain(twin_loss, (twin_encoders[0], x), (twin_encoders[1], y), chunk_size=chunk_size)
        for parameter in twin.parameters():
            dist.all_reduce(parameter.grad)
        steps.append(
            {
                "reductions": [len(model.reductions) for model in wrapped],
                "got": {key: parameter.grad for key, parameter in module.named_parameters()},
                "want": {key: parameter.grad / world for key, parameter in twin.named_parameters()},
            }
        )
        for model in wrapped:
            model.reductions.clear()
    return steps


def run_group(rank: int, world: int) -> dict[str, Any]:
    """Two steps that accumulate, with a loss over all ranks, against the same on one process with all rows."""
    torch.manual_seed(0)
    module = Encoder()
    alone, model = deepcopy(module), parallel(module)
    loss = pycl.NTXentLoss(0.5, group=dist.group.WORLD)
    before = 0
    for last in (False, True):
        x, y = batch(2, sum(ROWS))
        mine = slice(0, ROWS[0]) if rank == 0 else slice(ROWS[0], None)
        with nullcontext() if last else model.no_sync():
            before = len(model.reductions)
            pycl.cached_step(loss, (model, x[mine]), (model, y[mine]), chunk_size=3)
        plain(pycl.NTXentLoss(0.5), (alone, x), (alone, y), chunk_size=sum(ROWS))
    return {
        "reductions": [before, len(model.reductions)],
        "got": {key: parameter.grad for key, parameter in module.named_parameters()},
        "want": {key: parameter.grad for key, parameter in alone.named_parameters()},
    }


def run_all(rank: int, world: int) -> dict[str, Any]:
    return {name: run_case(rank, world, name) for name in CASES} | {"group": run_group(rank, world)}


@cache
def found() -> list[dict[str, Any]]:
    return on_ranks(len(ROWS), run_all)


@pytest.mark.parametrize("name", CASES)
def test_one_reduction_and_the_gradient_of_plain_steps(name: str) -> None:
    for of_rank in found():
        for step in of_rank[name]:
            assert step["reductions"] == [1] * len(step["reductions"])
            assert_same(step["got"], step["want"])


def test_a_loss_over_all_ranks_and_the_caller_s_own_no_sync() -> None:
    for of_rank in found():
        step = of_rank["group"]
        assert step["reductions"] == [0, 1]
        assert_same(step["got"], step["want"])
