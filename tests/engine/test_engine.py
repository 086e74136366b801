# SPDX-License-Identifier: Apache-2.0
"""The engine's statistics, sums and gradients against the dense formula, on every backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.dense import ALL, NEG_OTHER, NEG_SAME, POS_OTHER, POS_SAME, SELF, Case, check, engine, make, run
from helpers.oracle import FLOOR, widest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pycl import Pairs, Points, pair_stats, pair_sum
from pycl.backends.registry import load

DTYPES = pytest.mark.parametrize("dtype", FLOOR, ids=lambda t: str(t).removeprefix("torch."))
SHAPES = [
    (1, 1, 1),
    (5, 7, 3),  # less than any tile or vector
    (97, 200, 64),  # one row beyond a tile, aligned features
    (300, 260, 130),  # several tiles, nothing aligned
]


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    check(make(*shape, offset=1), backend, dtype)
    check(make(shape[0], None, shape[2], bias=(), positives=POS_SAME | POS_OTHER, normalize=True), backend, dtype)


VARIANTS: dict[str, Callable[[], Case]] = {
    "rows": lambda: make(29, 41, 7, sides="rows"),
    "no_bias": lambda: make(29, 41, 7, bias=()),
    "row_bias": lambda: make(29, 41, 7, bias=("row_bias",)),
    "col_bias": lambda: make(29, 41, 7, bias=("col_bias",), sides="rows"),
    "scale_of_rows": lambda: make(29, 41, 7, scale="rows"),
    "scale_of_rows_one_side": lambda: make(29, 41, 7, scale="rows", sides="rows", bias=()),
    "normalize": lambda: make(29, 41, 7, normalize=True),
    "normalize_scale_of_rows": lambda: make(29, 41, 7, normalize=True, scale="rows", sides="rows"),
    "negative_scale": lambda: make(29, 41, 7, scale=-2.0),
    "zero_scale": lambda: make(29, 41, 7, scale=0.0),
    "disjoint": lambda: make(29, 41, 7, offset=None, denominator=ALL),
    "rows_before": lambda: make(29, 41, 7, offset=-5, denominator=ALL, positives=SELF),
    "rows_after": lambda: make(29, 41, 7, offset=30, denominator=ALL, positives=SELF),
    "rows_far_away": lambda: make(29, 41, 7, offset=2**40, denominator=ALL, positives=SELF),
    "itself": lambda: make(67, None, 7, bias=()),
    "itself_one_side": lambda: make(67, None, 7, bias=(), sides="rows"),
    "itself_tied_bias": lambda: make(67, None, 7, bias=("row_bias",), tied=True),
    "itself_tied_bias_normalize": lambda: make(67, None, 7, bias=("row_bias",), tied=True, normalize=True),
    "itself_row_bias": lambda: make(67, None, 7, bias=("row_bias",)),
    "itself_two_biases": lambda: make(67, None, 7),
    "itself_scale_of_rows": lambda: make(67, None, 7, bias=(), scale="rows"),
    "itself_scale_of_rows_normalize": lambda: make(67, None, 7, scale="rows", normalize=True, sides="rows"),
    "itself_with_self": lambda: make(67, None, 7, bias=(), denominator=ALL, positives=SELF | POS_SAME),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, dtype: torch.dtype, backend: str) -> None:
    check(VARIANTS[variant](), backend, dtype)


SETS: dict[str, Callable[[int], int]] = {  # the positives by the denominator
    "disjoint": lambda denominator: denominator ^ ALL,
    "overlapping": lambda denominator: (5 * denominator + 3) % 32,
    "same": lambda denominator: denominator,
}


@pytest.mark.parametrize("self_pairs", [0, SELF])
@pytest.mark.parametrize("pos_same", [0, POS_SAME])
@pytest.mark.parametrize("pos_other", [0, POS_OTHER])
@pytest.mark.parametrize("neg_same", [0, NEG_SAME])
@pytest.mark.parametrize("neg_other", [0, NEG_OTHER])
@pytest.mark.parametrize("positives", SETS)
@pytest.mark.parametrize(("n", "offset"), [(None, 0), (17, None), (17, 0), (17, 4)], ids=str)
def test_pair_sets(
    n: int | None,
    offset: int | None,
    positives: str,
    self_pairs: int,
    pos_same: int,
    pos_other: int,
    neg_same: int,
    neg_other: int,
    backend: str,
) -> None:
    denominator = self_pairs | pos_same | pos_other | neg_same | neg_other
    case = make(23, n, 5, bias=(), offset=offset, denominator=denominator, positives=SETS[positives](denominator))
    check(case, backend, widest(backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [None, 110], ids=["itself", "columns"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0, 40.0, 100.0, 500.0])
def test_shift_proven_and_running(scale: float, n: int | None, dtype: torch.dtype, backend: str) -> None:
    """Below 35 the CPU kernel shares one shift, above it follows the maxima; past 80 a tile has several."""
    check(make(130, n, 16, scale=scale, bias=(), normalize=True), backend, dtype)


@pytest.mark.parametrize("sides", ["rows", "both"])
@pytest.mark.parametrize("n", [None, 60], ids=["itself", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_huge_and_tiny_rows_in_one_tile(dtype: torch.dtype, n: int | None, sides: str, backend: str) -> None:
    case = make(70, n, 8, scale=1.0, bias=(), sides=sides)
    length = torch.where(torch.arange(70) % 2 == 0, 40.0, 0.01)[:, None]
    case = case.update(x=case.leaves["x"] * length)
    if n is not None:
        case = case.update(y=case.leaves["y"] * length[:n].roll(1, 0))
    check(case, backend, dtype)
    check(case.update(row_bias=torch.linspace(-300, 300, 70).double()), backend, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "names",
    [
        [5, 5 + 2**32, 5 - 2**32, 6, 5 + 2**33],  # equal in 32 bits
        [0, 2**31 - 1, 1, 2, 3],  # the widest range compared as it is
        [0, 2**31, 1, 2, 3],  # and one more
        [-(2**63), 2**63 - 1, 0, -1, 2**62],
        [-5, -4, -3, -2, -1],
        [2**62, 2**62 + 1, 2**62 + 2, 2**62 + 3, 2**62 + 4],
    ],
    ids=["wrapped", "widest", "wide", "extreme", "negative", "far_but_close"],
)
def test_ids_and_views_are_64_bits(names: list[int], dtype: torch.dtype, backend: str) -> None:
    table = torch.tensor(names)
    for n in (None, 61):
        case = make(53, n, 6, bias=(), denominator=NEG_OTHER | POS_SAME, positives=POS_OTHER)
        labels = {field: table[getattr(case, field) % 5] for field in ("row_ids", "row_views", "col_ids", "col_views")}
        check(replace(case, **labels), backend, dtype)


def leaves_of(case: Case) -> dict[str, Tensor]:
    return {name: t.clone().requires_grad_() for name, t in case.leaves.items()}


@pytest.mark.float64
@pytest.mark.parametrize("sides", ["rows", "both"])
@pytest.mark.parametrize("n", [None, 5], ids=["itself", "columns"])
@pytest.mark.parametrize("normalize", [False, True], ids=["as_given", "normalize"])
@pytest.mark.parametrize("scale", ["rows", 2.0])
def test_gradcheck(scale: float | str, normalize: bool, n: int | None, sides: str, backend: str) -> None:
    case = make(
        4, n, 3, scale=scale, normalize=normalize, sides=sides, offset=0, denominator=ALL, positives=ALL & ~SELF
    )
    names = list(case.leaves)

    def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for t in engine(case, dict(zip(names, leaves, strict=True)), backend) if t.requires_grad)

    assert torch.autograd.gradcheck(outputs, tuple(leaves_of(case).values()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sides", ["rows", "both"])
@pytest.mark.parametrize("side", ["row_bias", "col_bias"])
def test_a_bias_of_minus_infinity_removes_a_point(side: str, sides: str, dtype: torch.dtype, backend: str) -> None:
    """Statistics and gradients of the others are those without the point; its own gradient is zero."""
    case = make(101, 60, 5, offset=None, denominator=ALL, positives=0, sides=sides)
    gone = torch.tensor([0, 17, 59])
    masked = case.update(**{side: case.leaves[side].index_fill(0, gone, -torch.inf)})
    masked = replace(masked, leaves={name: t.to(dtype) for name, t in masked.leaves.items()})
    points, ids, views = ("x", "row_ids", "row_views") if side == "row_bias" else ("y", "col_ids", "col_views")
    keep = torch.ones(len(case.leaves[points]), dtype=torch.bool).index_fill(0, gone, False)
    labels = {ids: getattr(case, ids)[keep], views: getattr(case, views)[keep]}
    without = replace(masked.update(**{name: masked.leaves[name][keep] for name in (points, side)}), **labels)

    def gradients(problem: Case, where: Tensor | None) -> dict[str, Tensor]:
        leaves = leaves_of(problem)
        lse = [t for k, t in enumerate(engine(problem, leaves, backend)) if k in (0, 4)]
        n_rows = len(leaves["x"])
        if where is not None:  # pick the remaining entries of the side that lost some
            lse = [t[where] if (len(t) == n_rows) == (side == "row_bias") else t for t in lse]
        total = sum((t * torch.linspace(1, 2, len(t), dtype=dtype)).sum() for t in lse)
        return {"total": total} | dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

    got, want = gradients(masked, keep), gradients(without, None)
    for name, wanted in want.items():
        mine = got[name]
        if name in (points, side):
            assert (mine[~keep] == 0).all()
            mine = mine[keep]
        torch.testing.assert_close(mine, wanted, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)


@pytest.mark.parametrize("n", [7, 70])
def test_a_nan_counts_as_the_pairs_that_there_are(n: int, backend: str) -> None:
    """The columns that fill the last block are no pairs, although a product with a NaN is a NaN there, too."""
    x, y = torch.randn(5, 4), torch.randn(n, 4)
    x[1, 2] = torch.nan
    stats = pair_stats(Points(x), Points(y), denominator=Pairs.ALL, positives=Pairs.ALL, offset=None, backend=backend)
    assert torch.equal(stats.pos_count, torch.full((5,), float(n)))
    assert torch.equal(stats.lse.isnan(), torch.arange(5) == 1)


@pytest.mark.parametrize("itself", [True, False], ids=["itself", "columns"])
@pytest.mark.parametrize("pairs", [Pairs.OTHERS, Pairs.SELF | Pairs.NEG_SAME_VIEW, Pairs.NEG_OTHER_VIEW], ids=str)
def test_points_without_labels_are_numbered_and_of_one_view(itself: bool, pairs: Pairs, backend: str) -> None:
    x, y = torch.randn(80, 6), torch.randn(110, 6)
    x.requires_grad_()
    number, one = torch.arange, functools.partial(torch.zeros, dtype=torch.int64)

    def found(ids: str, views: str) -> list[Tensor]:
        def points(z: Tensor, side: str) -> Points:
            return Points(z, number(len(z)) if side in ids else None, one(len(z)) if side in views else None)

        cols = None if itself else points(y, "cols")
        options: dict[str, Any] = {"denominator": pairs, "positives": Pairs.POSITIVE, "backend": backend}
        options["offset"] = 0 if itself else None
        rows, columns = pair_stats(points(x, "rows"), cols, sides="both", **options)
        terms = pair_sum(
            points(x, "rows"),
            cols,
            negatives=pairs,
            positives=Pairs.POSITIVE,
            offset=options["offset"],
            backend=backend,
        )
        kept = [*rows, *columns, terms]
        finite = sum(t.masked_fill(t == -torch.inf, 0).sum() for t in kept)
        return [*kept, *torch.autograd.grad(finite, x)]

    bare = found("", "")
    for ids, views in (("rows cols", "rows cols"), ("rows", ""), ("cols", "rows"), ("", "cols")):
        for mine, labelled in zip(bare, found(ids, views), strict=True):
            assert torch.equal(mine, labelled)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("empty", ["no_class", "no_pair"])
@pytest.mark.parametrize("n", [None, 60], ids=["itself", "columns"])
def test_empty_sets(n: int | None, empty: str, dtype: torch.dtype, backend: str) -> None:
    case = make(100, n, 4, offset=0, denominator=0, positives=0)
    if empty == "no_pair":  # all ids differ and there is one view
        case = replace(case, denominator=POS_SAME | POS_OTHER | NEG_OTHER, positives=POS_OTHER)
        case = replace(case, row_ids=torch.arange(100), row_views=torch.zeros(100, dtype=torch.int64))
        cols = 100 if n is None else n
        case = replace(case, col_ids=1000 + torch.arange(cols), col_views=torch.zeros(cols, dtype=torch.int64))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {name: t.to(dtype if name in ("x", "y") else wide) for name, t in case.leaves.items()}
    found, gradients = run(lambda x: engine(case, x, backend), leaves)
    for k, t in enumerate(found[:-1]):
        assert (t == (-torch.inf if k % 4 < 2 else 0)).all()
    assert (found[-1] == 0).all()
    assert all((g == 0).all() for g in gradients.values())


LABELS = st.integers(1, 6)


@settings(max_examples=60)
@given(data=st.data())
def test_drawn_problems(backend: str, data: st.DataObject) -> None:
    if backend != "triton":
        check_drawn(backend, data)


@settings(max_examples=15)  # the interpreter needs a second for each
@given(data=st.data())
def test_drawn_problems_for_triton(backends: list[str], data: st.DataObject) -> None:
    if "triton" in backends:
        check_drawn("triton", data)


def check_drawn(backend: str, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**20), label="seed"))
    m, d = draw(st.integers(1, 110), label="m"), draw(st.integers(1, 40), label="d")
    n = draw(st.none() | st.integers(1, 110), label="n")
    scale = draw(st.sampled_from([0.2, 3.0, 60.0, "rows"]), label="scale")
    bias = draw(st.sampled_from([(), ("row_bias",), ("col_bias",), ("row_bias", "col_bias")]), label="bias")
    case = make(
        m,
        n,
        d,
        scale=scale,
        bias=bias,
        tied=n is None and bias == ("row_bias",),
        normalize=draw(st.booleans(), label="normalize"),
        sides=draw(st.sampled_from(["rows", "both"]), label="sides"),
        denominator=draw(st.integers(0, ALL), label="denominator"),
        positives=draw(st.integers(0, ALL), label="positives"),
        offset=0 if n is None else draw(st.none() | st.integers(-m, n), label="offset"),
    )
    ids, views = draw(LABELS, label="ids"), draw(LABELS, label="views")
    labels = {"row_ids": case.row_ids % ids, "row_views": case.row_views % views}
    if draw(st.booleans(), label="sorted"):  # ranges of tiles do not overlap: whole tiles are one class
        labels = {name: t.sort().values for name, t in labels.items()}
    columns = {"col_ids": case.col_ids % ids, "col_views": case.col_views % views}
    if n is None:
        columns = {"col_ids": labels["row_ids"], "col_views": labels["row_views"]}
    dtype = draw(st.sampled_from([t for t in FLOOR if t in load(backend).DTYPES]), label="dtype")
    check(replace(case, **labels, **columns), backend, dtype)
