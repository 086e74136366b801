# SPDX-License-Identifier: Apache-2.0
"""Products that a forward keeps for its backward: used, and never mistaken for another problem's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from helpers.dense import ALL, POS_OTHER, SELF, Case, engine, make, run
from helpers.global_settings import matmul_precision, threads
from torch import Tensor

import pycl
import pycl.functional as F
from pycl import Pairs, Points, pair_stats, pair_sum
from pycl.backends.registry import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu, workspace
from pycl.core.problem import N_STATS, Needs, Problem

CASES = {
    "ragged": lambda: make(101, 67, 37, offset=3, denominator=ALL),
    "itself": lambda: make(150, None, 24, bias=(), normalize=True, positives=POS_OTHER),
    "steep": lambda: make(70, 130, 50, scale=90.0, normalize=True),
    "scale_of_rows": lambda: make(70, 99, 64, scale="rows", sides="rows", positives=SELF),
    "views": lambda: make(192, None, 9, denominator=POS_OTHER),
}

STATS_A_ROW = N_STATS
TERMS = {
    "siglip": lambda x, y: F.siglip(x, y, 5.0, -5.0, reduction="none"),
    "clip": lambda x, y: F.clip(x, y, 5.0, reduction="none"),
    "sup_con": lambda x, y: F.sup_con((x, y), torch.arange(300) // 2, reduction="none")[0],
    "pair_sum": lambda x, y: pair_sum(Points(x), Points(y), negatives=Pairs.ALL),
    "pair_stats": lambda x, y: pair_stats(Points(x), Points(y), denominator=Pairs.ALL).lse,
}
OF_VIEWS = {
    "clip": lambda z, reduction: F.clip(*z, 9.0, reduction=reduction),
    "nt_xent": lambda z, reduction: F.nt_xent(z, reduction=reduction),
    "mv_dhel": lambda z, reduction: F.mv_dhel(z.view(4, 260, 20), reduction=reduction),
}


def everything(case: Case, dtype: torch.dtype) -> list[Tensor]:
    leaves = {k: x.to(dtype if k in "xy" or dtype == torch.float64 else torch.float32) for k, x in case.leaves.items()}
    found, gradients = run(lambda x: engine(case, x, "cpu"), leaves)
    return [*found, *gradients.values()]


@pytest.mark.parametrize("share", [0, 0.4, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kept_or_computed_again_is_the_same(isa: str, case: str, dtype: torch.dtype, share: float) -> None:
    problem = CASES[case]()
    kept = everything(problem, dtype)
    width = max(4, dtype.itemsize)
    with pycl.set_workspace(int(share * 192 * 192 * width)):  # some tiles, or none
        for one, other in zip(kept, everything(problem, dtype), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("tiles", [0, 1, 4, 6])
@pytest.mark.parametrize("loss", OF_VIEWS)
def test_any_number_of_tiles_is_the_same(loss: str, tiles: int) -> None:
    """Of 3 x 3 blocks, or of 6 tiles of half a symmetric matrix; in one call and in two."""
    z = unit_rows(2, 520, 20)

    def everything_at(budget: int | None, reduction: str) -> list[Tensor]:
        leaf = z.clone().requires_grad_()
        with pycl.set_workspace(budget), threads(1):
            value = OF_VIEWS[loss](leaf, reduction)
            return [value.detach(), *torch.autograd.grad(value.mean(), leaf)]

    for reduction in ("mean", "none"):
        some = everything_at(tiles * 192 * 192 * 4 + 1000, reduction)
        for one, other in zip(some, everything_at(None, reduction), strict=True):
            assert torch.equal(one, other)


def test_tiles_that_nobody_visits_have_no_place() -> None:
    """Negatives of the same view alone, of four views: a quarter of the matrix."""
    before = {*workspace._in_use}
    loss = F.mv_dhel(unit_rows(4, 384, 20).requires_grad_(), reduction="none").sum()
    half_of_a_view = 4 * 384 * 384 / 2
    taken = sum(memory.nbytes for number, memory in workspace._in_use.items() if number not in before)
    del loss
    assert 4 * half_of_a_view < taken < 6.1 * half_of_a_view  # with whole tiles on the diagonal


def unit_rows(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(shape), dim=-1)


def problem_of(n: int) -> Problem:
    rows, cols = torch.randn(n, 8, requires_grad=True), torch.randn(n, 8)
    labels = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    return Problem(rows, cols, *labels, *labels, torch.tensor(2.0), None, None, ALL, POS_OTHER, None, False)


def memory_of(residuals: Tensor) -> Tensor | None:
    return workspace.memory_of(workspace.of_ticket(residuals))


def has_room(residuals: Tensor) -> bool:
    return memory_of(residuals) is not None


@torch.no_grad()
def gradient(problem: Problem, stats: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    d_lse = torch.linspace(1, 2, len(problem.rows))
    return cpu.pair_stats_backward(problem, (), *stats, [d_lse, None, None], [None] * 3, Needs(True, False, False)).rows


@torch.no_grad()
def test_a_backward_of_other_points_does_not_take_them() -> None:
    torch.manual_seed(0)
    first, second = problem_of(96), problem_of(96)
    stats = cpu.pair_stats(second, (), False, True)
    expected = gradient(second, stats)
    foreign = cpu.pair_stats(first, (), False, True)[2]
    assert has_room(foreign)
    torch.testing.assert_close(gradient(second, (*stats[:2], foreign)), expected, rtol=0, atol=0)


@torch.no_grad()
def test_residuals_are_what_a_backward_reads() -> None:
    problem = problem_of(96)
    stats = cpu.pair_stats(problem, (), False, True)
    expected = gradient(problem, stats)
    memory = memory_of(stats[2])
    assert memory is not None
    memory[-4 * 96 * 96 :] = 0  # logits of 0 everywhere
    assert not torch.allclose(gradient(problem, stats), expected)


def settings_of(kind: str) -> Iterator[AbstractContextManager[object]]:
    if kind == "threads":
        yield from map(threads, (1, 2, 3, 4))
    else:
        yield from map(matmul_precision, ("highest", "medium"))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["threads", "precision"])
@pytest.mark.parametrize("n", [4, 100, 200, 300, 600])
def test_a_backward_under_other_settings_does_not_take_them(isa: str, n: int, kind: str, symmetric: bool) -> None:
    torch.manual_seed(n)
    z = torch.nn.functional.normalize(torch.randn(n, 16), dim=1).requires_grad_()
    cols = None if symmetric else z.detach().flip(0).contiguous()
    labels = torch.arange(n) // 2, torch.zeros(n, dtype=torch.int64)
    of_cols = (None, None) if symmetric else labels
    problem = Problem(z, cols, *labels, *of_cols, torch.tensor(14.0), None, None, ALL, POS_OTHER, 0, False)
    tolerance = 2e-5 if kind == "precision" and isa.startswith("amx") else 2e-6
    for forward in settings_of(kind):
        with forward:
            stats = cpu.pair_stats(problem, (), False, True)
        for backward in settings_of(kind):
            with backward:
                expected = gradient(problem, (*stats[:2], torch.zeros(1, dtype=torch.int64)))
                found = gradient(problem, stats)
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@torch.no_grad()
def test_nothing_is_saved_without_need() -> None:
    assert has_room(cpu.pair_stats(problem_of(64), (), False, True)[2])
    assert not has_room(cpu.pair_stats(problem_of(64), (), False, False)[2])
    with pycl.set_workspace(2000):
        assert not has_room(cpu.pair_stats(problem_of(64), (), False, True)[2])
    assert has_room(cpu.pair_sum(problem_of(64), "softplus", None, False, True)[2])


@pytest.mark.parametrize("loss", TERMS)
def test_nothing_is_reachable_from_a_result(loss: str) -> None:
    """A result that is stored, detached or saved takes the memory of its numbers, and may be changed in place."""
    x, y = torch.randn(2, 300, 8).unbind()
    terms = TERMS[loss](x.requires_grad_(), y)
    assert terms.detach().untyped_storage().nbytes() <= STATS_A_ROW * terms.nbytes
    if loss != "pair_stats":  # which returns views
        terms *= torch.rand(300)


def test_a_second_backward_finds_them_again() -> None:
    z = torch.randn(2, 30, 8, requires_grad=True)
    loss = F.nt_xent(z, reduction="none").mean()  # a mean of its own has no second sweep
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(loss, z)
    assert torch.equal(first, second)
