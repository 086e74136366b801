# SPDX-License-Identifier: Apache-2.0
"""Products that a small problem keeps for its backward: used, never mistaken for another's, gone with a large one."""

from __future__ import annotations

import pytest
import torch
from dense import ALL, POS_OTHER, SELF, Case, engine, make, run
from settings import threads
from torch import Tensor

import pycl.functional as F
from pycl.backends import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl import cpu
from pycl.problem import Needs, Problem

CASES = {
    "ragged": lambda: make(101, 67, 37, offset=3, denominator=ALL),
    "itself": lambda: make(150, None, 24, bias=(), normalize=True, positives=POS_OTHER),
    "steep": lambda: make(70, 130, 50, scale=90.0, normalize=True),
    "scale_of_rows": lambda: make(70, 99, 64, scale="rows", sides="rows", positives=SELF),
    "views": lambda: make(192, None, 9, denominator=POS_OTHER),
}


def everything(case: Case, dtype: torch.dtype) -> list[Tensor]:
    leaves = {k: x.to(dtype if k in "xy" or dtype == torch.float64 else torch.float32) for k, x in case.leaves.items()}
    found, gradients = run(lambda x: engine(case, x, "cpu"), leaves)
    return [*found, *gradients.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kept_or_computed_again_is_the_same(
    isa: str, case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = CASES[case]()
    kept = everything(problem, dtype)
    monkeypatch.setattr(cpu, "KEPT_BYTES", 0)
    for one, other in zip(kept, everything(problem, dtype), strict=True):
        assert torch.equal(one, other)


def problem_of(n: int, *, grad: bool = True) -> Problem:
    rows, cols = torch.randn(n, 8, requires_grad=grad), torch.randn(n, 8)
    labels = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    return Problem(rows, cols, *labels, *labels, torch.tensor(2.0), None, None, ALL, POS_OTHER, None, False)


def has_room(result: Tensor) -> bool:
    return result.untyped_storage().nbytes() > result.nbytes + 4 * len(result)


@torch.no_grad()
def gradient(problem: Problem, stats: tuple[Tensor, Tensor]) -> Tensor:
    d_lse = torch.linspace(1, 2, len(problem.rows))
    return cpu.pair_stats_backward(problem, *stats, [d_lse, None, None], [None] * 3, Needs(True, False, False)).rows


@torch.no_grad()
def test_a_backward_of_other_points_does_not_take_them() -> None:
    torch.manual_seed(0)
    first, second = problem_of(96), problem_of(96)
    stats = cpu.pair_stats(second, False)
    expected = gradient(second, stats)
    foreign = cpu.pair_stats(first, False)
    foreign[0].copy_(stats[0])  # statistics of the second problem, in front of the products of the first
    assert has_room(foreign[0])
    torch.testing.assert_close(gradient(second, foreign), expected, rtol=0, atol=0)


@torch.no_grad()
def test_kept_products_are_what_a_backward_reads() -> None:
    problem = problem_of(96)
    stats = cpu.pair_stats(problem, False)
    expected = gradient(problem, stats)
    memory = stats[0].new_empty(0).set_(stats[0].untyped_storage())
    memory[-96 * 96 :] = 0  # logits of 0 everywhere
    assert not torch.allclose(gradient(problem, stats), expected)


@torch.no_grad()
def test_other_tiles_do_not_take_them() -> None:
    problem = problem_of(300)
    with threads(2):
        stats = cpu.pair_stats(problem, False)
        tiles = cpu._compiled(problem).kept_bytes()
    with threads(3):
        assert cpu._compiled(problem).kept_bytes() != tiles
        alone = gradient(problem, (stats[0].clone(), stats[1]))
        assert torch.equal(gradient(problem, stats), alone)


@torch.no_grad()
def test_nothing_is_kept_without_need() -> None:
    assert has_room(cpu.pair_stats(problem_of(64), False)[0])
    assert not has_room(cpu.pair_stats(problem_of(64, grad=False), False)[0])
    assert not has_room(cpu.pair_stats(problem_of(2000), False)[0])
    assert has_room(cpu.pair_sum(problem_of(64)))


def test_a_second_backward_finds_them_again() -> None:
    z = torch.randn(2, 30, 8, requires_grad=True)
    loss = F.nt_xent(z, reduction="none").mean()  # a mean of its own has no second sweep
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(loss, z)
    assert torch.equal(first, second)
