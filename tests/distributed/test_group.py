# SPDX-License-Identifier: Apache-2.0
"""Ranks that share a batch: two, three and four gloo processes against one, in both transports."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.dense import ALL, NEG_OTHER, NEG_SAME, POS_OTHER, SELF, Case, dense, engine, make, outputs_and_gradients
from helpers.spawn import on_ranks
from torch import Tensor

from pycl import functional as F
from pycl.backends.registry import installed
from pycl.core.problem import Problem
from pycl.distributed import Ring
from pycl.testing.table import LOSSES

SHARES = {1: (13,), 2: (8, 5), 3: (6, 1, 6), 4: (3, 4, 1, 5)}
WORLDS, TRANSPORTS = (2, 3, 4), ("gather", "ring")
N, D = 13, 5


def group_of(transport: str) -> Any:
    return dist.group.WORLD if transport == "gather" else Ring(dist.group.WORLD)


def share(x: Tensor, rank: int, world: int, dim: int = 0) -> Tensor:
    """This rank's part; what is not as long as the batch is cut in the same proportions."""
    ends = [round(sum(SHARES[world][: r + 1]) * x.shape[dim] / N) for r in range(world - 1)]
    return x.tensor_split(ends, dim)[rank]


# ---- every loss


def inputs_of(name: str) -> list[Tensor]:
    torch.manual_seed(0)
    return LOSSES[name].make(min(3, LOSSES[name].n_views[1]), N, D)


def one_loss(name: str, rank: int, world: int, **options: Any) -> dict[str, Any]:
    """The value, and gradients of the inputs, instances first, and of the scalars."""
    loss = LOSSES[name]
    inputs = [
        (x if k in loss.replicated else share(x, rank, world, 1 if x.dim() == 3 else 0)).clone()
        for k, x in enumerate(inputs_of(name))
    ]
    scalars = {key: torch.tensor(value, dtype=torch.float64) for key, value in loss.scalars.items()}
    leaves = [x.requires_grad_() for x in (*inputs, *scalars.values()) if x.is_floating_point()]
    value = loss(inputs, scalars, **options)
    weights = share(torch.arange(1.0, N + 1, dtype=torch.float64), rank, world) if value.dim() else torch.tensor(1.0)
    (value * weights).sum().backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return {
        "value": value.detach(),
        "gradients": [g.transpose(0, 1) if g.dim() == 3 else g for g in gradients],
    }


def all_losses(rank: int, world: int) -> dict[str, Any]:
    found = {}
    for name, loss in LOSSES.items():
        for transport in TRANSPORTS:
            for reduction in ("mean", "sum", "none") if loss.reducible else (None,):
                options: dict[str, Any] = {"group": group_of(transport)} | (
                    {"reduction": reduction} if reduction else {}
                )
                found[name, transport, reduction] = one_loss(name, rank, world, **options)
    return found


losses_on = cache(lambda world: on_ranks(world, all_losses))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_together_are_one_process(name: str, world: int, transport: str) -> None:
    for reduction in ("mean", "sum", "none") if LOSSES[name].reducible else (None,):
        one = one_loss(name, 0, 1, **({"reduction": reduction} if reduction else {}))
        parts = [rank[name, transport, reduction] for rank in losses_on(world)]
        # the ranks' losses average to that of one process; per term there is nothing to average, and gradients add up
        many = 1 if reduction == "none" else world
        value = torch.cat([p["value"] for p in parts], -1) if many == 1 else sum(p["value"] for p in parts) / many
        torch.testing.assert_close(value, one["value"], rtol=0, atol=1e-11)
        for k, expected in enumerate(one["gradients"]):
            mine = [p["gradients"][k] / many for p in parts]
            torch.testing.assert_close(
                sum(mine) if expected.dim() == 0 or k in LOSSES[name].replicated else torch.cat(mine),
                expected,
                rtol=0,
                atol=1e-11,
            )


def one_rank(rank: int, world: int) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, 4, 3)
    return F.nt_xent(z, group=dist.group.WORLD), F.nt_xent(z, group=Ring(dist.group.WORLD)) - F.nt_xent(z)


def test_a_group_of_one_is_no_group() -> None:
    ((value, difference),) = on_ranks(1, one_rank)
    assert value > 0
    assert difference == 0


# ---- the engine


def problems() -> dict[str, Case]:
    torch.manual_seed(1)
    return {
        "symmetric": make(N, None, D, bias=(), normalize=True),
        "tied bias": make(N, None, D, bias=("row_bias",), tied=True, denominator=ALL & ~SELF),
        "own bias": make(N, None, D, denominator=NEG_SAME | NEG_OTHER),
        "scale of each row": make(N, None, D, scale="rows", bias=()),
        "columns": make(N, 29, D, offset=None, denominator=NEG_OTHER, positives=POS_OTHER),
        "both sides": make(N, 29, D, offset=None, normalize=True, denominator=ALL),
        "shifted": make(N, N, D, offset=0, denominator=ALL & ~SELF),
        "rows only": make(N, 11, D, offset=None, sides="rows", bias=("col_bias",)),
        "weighted": make(N, 29, D, offset=None, denominator=NEG_OTHER, weighted=True),
        "weighted, itself": make(N, None, D, bias=(), positives=ALL & ~SELF, weighted=True),
        "squares": make(N, 11, D, offset=None, sides="rows", bias=("col_bias",), map="square"),
    }


SIZED_AS_ROWS = ("x", "row_bias", "scale")


def of_rank(case: Case, rank: int, world: int) -> Case:
    leaves = {k: x if x.dim() == 0 else share(x, rank, world) for k, x in case.leaves.items()}
    labels = {k: share(getattr(case, k), rank, world) for k in ("row_ids", "row_views", "col_ids", "col_views")}
    return Case(
        leaves=leaves,
        positive_weight=None if case.positive_weight is None else share(case.positive_weight, rank, world),
        **labels,
        **{k: getattr(case, k) for k in ("denominator", "positives", "offset", "sides", "normalize", "tied", "map")},
    )


def weights_for(case: Case) -> list[Tensor]:
    found, _ = dense(case, case.leaves)
    return [torch.linspace(0.5, 1.5 + k, len(x), dtype=torch.float64) for k, x in enumerate(found)]


def all_problems(rank: int, world: int) -> dict[Any, Any]:
    found = {}
    for name, case in problems().items():
        mine, weights = of_rank(case, rank, world), [share(w, rank, world) for w in weights_for(case)]
        for transport in TRANSPORTS:
            for backend in installed("cpu", torch.float64):
                run = lambda leaves, c=mine, b=backend, t=transport: engine(c, leaves, b, group_of(t))  # noqa: E731
                # columns of a symmetric problem are its rows: the engine returns the rows' statistics for both
                found[name, transport, backend] = outputs_and_gradients(mine.leaves, run, weights)
    return found


problems_on = cache(lambda world: on_ranks(world, all_problems))


@pytest.mark.float64
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", problems())
def test_the_engine_on_ranks(name: str, world: int, transport: str, backend: str) -> None:
    case = problems()[name]
    expected, gradients = outputs_and_gradients(case.leaves, lambda x: dense(case, x)[0], weights_for(case))
    parts = [rank[name, transport, backend] for rank in problems_on(world)]
    for k, want in enumerate(expected):
        torch.testing.assert_close(torch.cat([found[k] for found, _ in parts]), want, rtol=0, atol=1e-11)
    for leaf, want in gradients.items():
        mine = [of[leaf] for _, of in parts]
        torch.testing.assert_close(sum(mine) if want.dim() == 0 else torch.cat(mine), want, rtol=0, atol=1e-10)


# ---- dtypes


def half_types(rank: int, world: int) -> dict[Any, Any]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for transport in TRANSPORTS:
            torch.manual_seed(0)
            z = share(torch.randn(2, N, 16), rank, world, 1).transpose(0, 1).contiguous().transpose(0, 1)  # strided
            z = z.to(dtype).requires_grad_()
            loss = F.nt_xent(z, group=group_of(transport))
            loss.backward()
            assert z.grad is not None
            found[str(dtype), transport] = loss.detach(), z.grad.transpose(0, 1)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_dtypes(transport: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(2, N, 16).to(dtype).double().requires_grad_()
    expected = F.nt_xent(z)
    expected.backward()
    assert z.grad is not None
    parts = [rank[str(dtype), transport] for rank in half_types_on(3)]
    assert all(value.dtype == torch.float32 and gradient.dtype == dtype for value, gradient in parts)
    value, gradient = sum(v for v, _ in parts) / 3, torch.cat([g for _, g in parts]).double() / 3
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-6, atol=0)
    largest = z.grad.abs().max().item()
    torch.testing.assert_close(gradient, z.grad.transpose(0, 1), rtol=0, atol=tolerance * largest)


half_types_on = cache(lambda world: on_ranks(world, half_types))


# ---- who computes what


class Counted:
    """A backend that writes down how many pairs it multiplies, and the most columns it sees at once."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.pairs, self.columns = backend, 0, 0

    def __getattr__(self, name: str) -> Any:
        operator = getattr(self.backend, name)

        def call(problem: Problem, *rest: Any) -> Any:
            m, n = len(problem.rows), problem.n_cols()
            self.pairs += m * (m + 1) // 2 if problem.cols is None else m * n
            self.columns = max(self.columns, n)
            return operator(problem, *rest)

        return call if name.startswith("pair_") else operator


def work_of(rank: int, world: int) -> dict[Any, Any]:
    from pycl.backends import registry

    torch.manual_seed(0)
    found, n = {}, 96 // world
    for name in ("nt_xent", "clip", "siglip", "sup_con"):
        for transport in TRANSPORTS if world > 1 else ("none",):
            counted = Counted(registry.load("reference"))
            registry.load = lambda _, counted=counted: counted  # the process ends after this
            inputs = [x.requires_grad_() if x.is_floating_point() else x for x in LOSSES[name].make(2, n, 8)]
            options = {} if world == 1 else {"group": group_of(transport)}
            LOSSES[name](inputs, LOSSES[name].scalars, backend="reference", **options).backward()
            found[name, transport] = counted.pairs, counted.columns
            registry.load = lambda _, counted=counted: counted.backend
    return found


work_on = cache(lambda world: on_ranks(world, work_of))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("name", ["nt_xent", "clip", "siglip", "sup_con"])
def test_ranks_divide_the_work(name: str, world: int, transport: str) -> None:
    (one,) = work_on(1)
    whole, _ = one[name, "none"]
    mine = [rank[name, transport][0] for rank in work_on(world)]
    assert max(mine) <= 1.1 * whole / world
    assert sum(mine) >= whole * 0.98  # nobody leaves pairs out; a half of 2 n rows has fewer diagonals to count


@pytest.mark.parametrize("world", [2, 3, 4])
def test_a_ring_never_holds_all_columns(world: int) -> None:
    for name in ("nt_xent", "clip", "siglip"):
        points = 96 // world * (2 if name == "nt_xent" else 1)
        assert [rank[name, "ring"][1] for rank in work_on(world)] == [points] * world
        if world > (3 if name == "nt_xent" else 2):  # three ranks fetch one other's columns of a symmetric matrix
            assert max(rank[name, "gather"][1] for rank in work_on(world)) > points


def saved_of(rank: int, world: int) -> list[int]:
    """Bytes that are kept for the backward of each part of a forward; the temperature wants a gradient, too."""
    from pycl.backends import cpu, workspace

    found, plain = [], cpu.pair_stats

    def spy(problem: Problem, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        results = plain(problem, *arguments)
        memory = workspace.memory_of(workspace.of_ticket(results[2]))
        found.append(0 if memory is None else memory.nbytes)
        return results

    cpu.pair_stats = spy  # the process ends after this
    temperature = torch.tensor(0.3, requires_grad=True)
    F.nt_xent(torch.randn(2, 24, 8, requires_grad=True), temperature=temperature, group=dist.group.WORLD, backend="cpu")
    return found


@pytest.mark.skipif("cpu" not in installed("cpu"), reason="backend='cpu' is not built")
def test_only_what_a_backward_reads_is_saved() -> None:
    found = on_ranks(2, saved_of)
    for own, *of_others in found:
        assert own > 0
        assert not any(of_others)
    assert sum(map(len, found)) > len(found)  # some rank computed pairs with the other's points
