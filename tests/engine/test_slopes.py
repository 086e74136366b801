# SPDX-License-Identifier: Apache-2.0
"""Log-sum-exps of several multiples of the logits, against the dense formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.dense import ALL, NEG_SAME, POS_OTHER, POS_SAME, SELF, Case, arguments, dense, make, of_slopes, pair_sets
from helpers.oracle import FLOOR, assert_as_accurate
from helpers.spawn import on_ranks
from torch import Tensor
from torch.testing import assert_close

from pycl.core.problem import Needs, Problem
from pycl.distributed import Ring
from pycl.engine import LabelTable, Pairs, PairStats, Points, pair_stats

CASES: dict[str, Callable[[], Case]] = {
    "everything": partial(make, 67, 131, 19, offset=3),
    "itself": partial(make, 150, None, 7, bias=("row_bias",), tied=True, positives=POS_SAME | POS_OTHER),
    "scale_of_rows": partial(make, 70, 99, 64, scale="rows", sides="rows", positives=SELF),
    "one_pair": partial(make, 1, 1, 1, denominator=ALL, positives=SELF),
    "some_slopes_within_the_bound": partial(make, 101, 90, 50, scale=20.0, normalize=True, positives=SELF),
    "steep": partial(make, 130, None, 24, scale=90.0, bias=(), normalize=True),
    "extreme": partial(make, 67, 81, 8, scale=1e4, bias=(), normalize=True, positives=ALL & ~SELF),
    "large_tiles": partial(make, 400, 390, 9, offset=None),
    "blocks_without_a_pair": lambda: replace(
        make(256, 256, 9, denominator=NEG_SAME, positives=POS_SAME, offset=None),
        row_views=torch.arange(256) // 128,
        col_views=torch.ones(256, dtype=torch.int64),
    ),
}
SLOPES = ((1.0, 2.0), (3.0,), (0.5, 1.0, 4.0))
CASE = pytest.mark.parametrize("case", CASES)
SLOPE = pytest.mark.parametrize("slopes", SLOPES, ids=str)
DTYPE = pytest.mark.parametrize("dtype", FLOOR, ids=str)


def of_logits(logits: Tensor, sets: Sequence[Tensor], slopes: Sequence[float], sides: str) -> list[Tensor]:
    """The statistics from the whole matrix; a logit of -inf is in no sum."""
    found, sets = [], [chosen & (logits != -torch.inf) for chosen in sets]
    for dim in (1, 0) if sides == "both" else (1,):
        for chosen in sets:
            found.append(torch.stack([(s * logits).masked_fill(~chosen, -torch.inf).logsumexp(dim) for s in slopes]))
        found += [torch.where(sets[1], logits, 0).sum(dim), sets[1].sum(dim).to(logits.dtype)]
    return found


def whole(case: Case, leaves: dict[str, Tensor], slopes: Sequence[float]) -> tuple[list[Tensor], Tensor]:
    logits = dense(case, leaves)[1]
    return of_logits(logits, pair_sets(case), slopes, case.sides), logits


def swept(case: Case, leaves: dict[str, Tensor], slopes: Sequence[float], backend: str | None, **more: Any) -> Any:
    points, options = arguments(case, leaves)
    options |= {"denominator": Pairs(case.denominator), "slopes": slopes, "backend": backend}
    found = pair_stats(*points, sides=case.sides, **options, **more)
    return [*found[0], *found[1]] if case.sides == "both" else [*found]


def weighted(found: list[Tensor], scale: Tensor) -> list[Tensor]:
    """A scalar of each output, every finite entry with a weight of its own; no gradient leaves the range of float16."""
    found = [t / max(1.0, scale.detach().max().item()) for t in found]
    of = [torch.linspace(0.5, 1.5 + k, t.numel(), dtype=torch.float64).view(t.shape) for k, t in enumerate(found)]
    return [(t.double().masked_fill(t == -torch.inf, 0) * w).sum() for t, w in zip(found, of, strict=True)]


def with_gradients(
    function: Callable[..., list[Tensor]], leaves: dict[str, Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    found = function(leaves)
    gradients = torch.autograd.grad(sum(weighted(found, leaves["scale"])), list(leaves.values()))
    return [t.detach() for t in found], dict(zip(leaves, gradients, strict=True))


def magnitudes(case: Case, leaves: dict[str, Tensor], slopes: Sequence[float]) -> tuple[float, float, dict[str, float]]:
    """The largest slope times a logit, the largest sum of logits, and each gradient without cancellation."""
    found, logits = whole(case, {name: t.detach().requires_grad_() for name, t in leaves.items()}, slopes)
    parts = [t for t in weighted(found, leaves["scale"]) if t.requires_grad]
    w = sum(torch.autograd.grad(t, logits, retain_graph=True)[0].abs() for t in parts)
    kept = logits.masked_fill(logits == -torch.inf, 0).abs()
    size, total = max(slopes) * kept.max().item(), kept.sum(1).max().item()
    return size, total, of_slopes(case, leaves, w, size)


def check(case: Case, slopes: Sequence[float], backend: str, dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {name: t.to(dtype if name in ("x", "y") else wide) for name, t in case.leaves.items()}
    exact = {name: t.double() for name, t in leaves.items()}
    truth, d_truth = with_gradients(lambda x: whole(case, x, slopes)[0], exact)
    plain = {name: t.to(dtype) for name, t in leaves.items()}
    eager, d_eager = with_gradients(lambda x: whole(case, x, slopes)[0], plain)
    got, d_got = with_gradients(lambda x: swept(case, x, slopes, backend), leaves)
    size, total, of_gradients = magnitudes(case, exact, slopes)
    for k, (mine, of_torch, true) in enumerate(zip(got, eager, truth, strict=True)):
        assert mine.dtype == wide
        assert mine.shape == true.shape
        empty = true == -torch.inf
        assert torch.equal(mine == -torch.inf, empty)
        finite = [t.masked_fill(empty, 0) for t in (mine, of_torch, true)]
        assert_as_accurate(*finite, dtype, magnitude=total if k % 4 == 2 else max(1.0, size))
    for name, true in d_truth.items():
        assert d_got[name].dtype == leaves[name].dtype
        assert_as_accurate(d_got[name], d_eager[name], true, dtype, magnitude=of_gradients[name])


@DTYPE
@SLOPE
@CASE
def test_against_dense(case: str, slopes: Sequence[float], dtype: torch.dtype, backend: str) -> None:
    check(CASES[case](), slopes, backend, dtype)


@DTYPE
@CASE
def test_instruction_sets(case: str, dtype: torch.dtype, isa: str) -> None:
    for slopes in SLOPES:
        check(CASES[case](), slopes, "cpu", dtype)


def test_most_slopes(backend: str) -> None:
    check(CASES["everything"](), [2.0**k / 16 for k in range(8)], backend, torch.float32)


@SLOPE
def test_biases_that_leave_candidates_out(slopes: Sequence[float], backend: str) -> None:
    case = make(67, 131, 19, offset=3)
    for every in (2, 1):
        bias = {name: t.clone() for name, t in case.leaves.items() if "bias" in name}
        bias["row_bias"][5] = bias["col_bias"][::every] = -torch.inf
        check(case.update(**bias), slopes, backend, torch.float32)


@SLOPE
def test_a_pair_that_is_the_whole_sum(slopes: Sequence[float], backend: str) -> None:
    """Its weight is 1, however large the logit: its gradient is the slope."""
    x, y = torch.randn(2, 67, 8)
    bias = torch.randn(67, requires_grad=True)
    for scale in (1e4, -1e4):
        stats = pair_stats(Points(x), Points(y), scale, denominator=Pairs.SELF, positives=Pairs.SELF, col_bias=bias,
                           slopes=slopes, normalize=True, backend=backend)  # fmt: skip
        for lse in (stats.lse, stats.pos_lse):
            for k, slope in enumerate(slopes):
                (gradient,) = torch.autograd.grad(lse[k].sum(), bias, retain_graph=True)
                assert_close(gradient, torch.full((67,), slope), rtol=2e-7, atol=0)


def test_one_slope_of_one_is_none(backend: str) -> None:
    case = CASES["everything"]()
    leaves = {name: t.float() for name, t in case.leaves.items()}
    (one, d_one), (none, d_none) = (
        with_gradients(partial(swept, case, slopes=s, backend=backend), leaves) for s in ((1.0,), None)
    )
    for k, (a, b) in enumerate(zip(one, none, strict=True)):
        assert_close(a[0] if k % 4 < 2 else a, b)
    for name, gradient in d_one.items():  # weights of the outputs differ in nothing
        assert_close(gradient, d_none[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads(n_threads: int) -> None:
    from helpers.global_settings import threads

    case = CASES["large_tiles"]()
    leaves = {name: t.float() for name, t in case.leaves.items()}
    with threads(1):
        one = with_gradients(partial(swept, case, slopes=(1.0, 40.0), backend="cpu"), leaves)
    with threads(n_threads):
        several = with_gradients(partial(swept, case, slopes=(1.0, 40.0), backend="cpu"), leaves)
    for found, wanted in zip((*several[0], *several[1].values()), (*one[0], *one[1].values()), strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.float64
def test_gradcheck(backend: str) -> None:
    case = make(5, 7, 3, scale="rows")

    def function(*leaves: Tensor) -> list[Tensor]:
        found = swept(case, dict(zip(case.leaves, leaves, strict=True)), (0.5, 2.0), backend)
        return [t.masked_fill(t == -torch.inf, 0) for k, t in enumerate(found) if k % 4 < 3]

    assert torch.autograd.gradcheck(function, [t.clone().requires_grad_() for t in case.leaves.values()])


@pytest.mark.float64
def test_slopes_times_modified_logits(backend: str) -> None:
    """Weights of pairs are in what a slope multiplies; a dropped pair is in no sum of any slope."""
    case = make(150, 141, 5)
    table = torch.rand(3, 4, dtype=torch.float64)
    table[1, 2], rows, cols = 0, torch.arange(150) % 3, torch.arange(141) % 4
    table.requires_grad_()
    leaves = {name: t.clone().requires_grad_() for name, t in case.leaves.items()}
    found = swept(case, leaves, (1.0, 2.5), backend, modifiers=[LabelTable(table, rows, cols)])
    dropped = (rows[:, None] == 1) & (cols == 2)
    weights = torch.where(dropped, 1, table[rows[:, None], cols]).log().masked_fill(dropped, -torch.inf)
    logits = dense(case, leaves)[1] + weights
    wanted = of_logits(logits, pair_sets(case), (1.0, 2.5), case.sides)
    wants = [*leaves.values(), table]
    assert_close(found, wanted)
    assert_close(*(torch.autograd.grad(sum(weighted(t, leaves["scale"])), wants) for t in (found, wanted)))


@pytest.mark.float64
def test_slopes_of_a_symmetric_table(backend: str) -> None:
    """Several tiles off the diagonal, each with pairs in both of their roles."""
    x, labels = torch.randn(400, 5, dtype=torch.float64), torch.arange(400) % 3
    table, slopes = torch.rand(3, 3, dtype=torch.float64) + 0.1, (0.5, 2.0)
    table = (table * table.T).requires_grad_()
    modifiers = [LabelTable(table, labels, labels)]
    found = pair_stats(Points(x), denominator=Pairs.OTHERS, slopes=slopes, modifiers=modifiers, backend=backend).lse
    logits = (x @ x.T + table.log()[labels][:, labels]).masked_fill(torch.eye(400, dtype=torch.bool), -torch.inf)
    wanted = torch.stack([(slope * logits).logsumexp(1) for slope in slopes])
    assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    assert_close(*(torch.autograd.grad((lse * weights).sum(), table) for lse in (found, wanted)))


def operands(kind: str) -> Problem:
    x, y = torch.randn(7, 4), None if kind == "itself" else torch.randn(9, 4)
    offset = 0 if kind == "itself" else None
    labels = [None] * 4
    return Problem(x, y, *labels, torch.tensor(2.0), None, None, int(Pairs.OTHERS), int(Pairs.POSITIVE), offset, False)


@pytest.mark.parametrize("kind", ["itself", "columns"])
def test_opcheck(kind: str, backend: str) -> None:
    p, ops, slopes, both = operands(kind), torch.ops.pycl, [1.0, 2.0], kind == "columns"
    torch.library.opcheck(ops.pair_stats.default, (*p, slopes, both, True, backend))
    stats = ops.pair_stats(*p, slopes, both, False, backend)
    of_rows = torch.randn(2, 7), None, torch.randn(7)
    of_cols = (None, torch.randn(2, 9), None) if both else (None,) * 3
    needs = Needs(rows=True, cols=both, bias=False)
    torch.library.opcheck(ops.pair_stats_backward.default, (*p, slopes, *stats, *of_rows, *of_cols, needs, backend))


def objective(x: Tensor, y: Tensor, backend: str) -> Tensor:
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.SELF}
    of_rows, of_cols = pair_stats(Points(x), Points(y), 2.0, sides="both", slopes=(1.0, 2.5), backend=backend, **sets)
    itself = pair_stats(Points(x), slopes=(0.5, 3.0, 1.0), denominator=Pairs.OTHERS, backend=backend)
    parts = of_rows.lse, of_cols.lse, of_rows.pos_lse, of_cols.pos_sum, itself.lse
    return sum((t * torch.arange(1.0, t.numel() + 1).view(t.shape)).sum() for t in parts)


def test_compile(backend: str) -> None:
    torch.compiler.reset()
    x, y = (torch.randn(9, 4, requires_grad=True) for _ in range(2))
    compiled = torch.compile(partial(objective, backend=backend), fullgraph=True, backend="aot_eager")
    found, wanted = compiled(x, y), objective(x, y, backend)
    assert_close(found, wanted)
    assert_close(torch.autograd.grad(found, (x, y)), torch.autograd.grad(wanted, (x, y)))


def test_transforms(backend: str) -> None:
    x, y = torch.randn(2, 3, 9, 4)
    gradient = torch.func.grad(partial(objective, backend=backend), argnums=(0, 1))
    found = torch.func.vmap(gradient)(x, y)
    for k, wanted in enumerate(zip(*(gradient(a, b) for a, b in zip(x, y, strict=True)), strict=True)):
        assert_close(found[k], torch.stack(wanted))


def test_second_derivatives_are_refused(backend: str) -> None:
    x = torch.randn(5, 3, requires_grad=True)
    value = pair_stats(Points(x), denominator=Pairs.OTHERS, slopes=(1.0, 2.0), backend=backend).lse.sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.square().sum().backward()


N = 11
SHARE = {0: slice(0, 7), 1: slice(7, N)}  # uneven
IDS, VIEWS = torch.arange(N) % 4, torch.arange(N) % 2
GROUP_SLOPES = (1.0, 2.0, 30.0)
SETS: dict[str, Any] = {"denominator": Pairs.NEGATIVE, "positives": Pairs.POSITIVE}


def statistics(x: Tensor, y: Tensor, bias: Tensor, at: slice, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The statistics of some points, each with a weight of its own, and the gradients."""
    x, y, bias = (t[at].clone().requires_grad_() for t in (x, y, bias))
    rows, cols = (Points(z, IDS[at], VIEWS[at]) for z in (x, y))
    options |= {**SETS, "slopes": GROUP_SLOPES}
    sides = pair_stats(rows, cols, 2.0, sides="both", col_bias=bias, offset=None, **options)
    found = [t for side in (*sides, pair_stats(rows, normalize=True, **options)) for t in side]
    weights = torch.linspace(-1, 1, N)[at]
    total = sum((k + 1) * (t.masked_fill(t == -torch.inf, 0) * weights).sum() for k, t in enumerate(found))
    return [t.detach() for t in found], list(torch.autograd.grad(total, (x, y, bias)))


def points() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(N, 5), torch.randn(N, 5), torch.randn(N)]


def shares(rank: int, world: int, backend: str) -> Any:
    group: Any = dist.group.WORLD
    found = {ring: statistics(*points(), SHARE[rank], group=Ring(group) if ring else group, backend=backend)
             for ring in (False, True)}  # fmt: skip
    try:
        pair_stats(Points(torch.randn(3, 2)), **SETS, slopes=(1.0, 2.0 + rank), group=group)
        told = "nothing"
    except ValueError as error:
        told = str(error)
    try:
        pair_stats(Points(torch.randn(3, 2)), **SETS, slopes=(1.0,) if rank else None, group=group)
    except ValueError as error:
        told += str(error)
    return found, told


def test_ranks(backend: str) -> None:
    wanted, d_wanted = statistics(*points(), slice(None), backend=backend)
    for rank, (by_transport, told) in enumerate(on_ranks(2, shares, backend)):
        for found, d_found in by_transport.values():
            for got, true in zip(found, wanted, strict=True):
                assert_close(got, true[..., SHARE[rank]], rtol=1e-5, atol=1e-5)
            for got, true in zip(d_found, d_wanted, strict=True):
                assert_close(got, true[SHARE[rank]], rtol=1e-4, atol=1e-4)
        assert "slopes must be the same on all ranks of the group, got (1.0, 2.0) on rank 0, (1.0, 3.0) on" in told
        assert "got nothing on rank 0, (1.0,) on rank 1" in told


@pytest.mark.parametrize(
    ("slopes", "error", "said"),
    [
        ((), ValueError, r"slopes must be 1 to 8 numbers, got 0"),
        ([1.0] * 9, ValueError, r"slopes must be 1 to 8 numbers, got 9"),
        ((1.0, 0.0), ValueError, r"slopes must be positive and finite in torch.float32, got 0.0"),
        ((-2,), ValueError, r"slopes must be positive and finite in torch.float32, got -2"),
        ((math.inf,), ValueError, r"slopes must be positive and finite in torch.float32, got inf"),
        ((1e300,), ValueError, r"slopes must be positive and finite in torch.float32, got 1e\+300"),
        ((1e-300,), ValueError, r"slopes must be positive and finite in torch.float32, got 1e-300"),
        ((1.0, math.nan), ValueError, r"slopes must be positive and finite in torch.float32, got nan"),
        (2.0, TypeError, r"slopes must be None or a sequence of numbers, got float"),
        ("12", TypeError, r"slopes must be None or a sequence of numbers, got str"),
        (torch.ones(2), TypeError, r"slopes must be None or a sequence of numbers, got Tensor"),
        ((torch.tensor(2.0),), TypeError, r"slopes must be numbers, which have no gradient, got Tensor"),
        ((True,), TypeError, r"slopes must be numbers, which have no gradient, got bool"),
        ((1 + 2j,), TypeError, r"slopes must be numbers, which have no gradient, got complex"),
    ],
    ids=str,
)
def test_bad_input(slopes: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        pair_stats(Points(torch.randn(4, 3)), denominator=Pairs.OTHERS, slopes=slopes)


def test_numbers_of_other_types(backend: str) -> None:
    x, options = Points(torch.randn(4, 3)), {"denominator": Pairs.OTHERS, "backend": backend}
    found = pair_stats(x, slopes=[np.float32(0.5), 2, np.int64(3)], **options)
    assert isinstance(found, PairStats)
    assert torch.equal(found.lse, pair_stats(x, slopes=(0.5, 2.0, 3.0), **options).lse)
