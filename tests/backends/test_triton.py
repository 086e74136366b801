# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: tiles, strips and chunks of every size, precisions, extremes, memory, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.dense import (
    ALL,
    NEG_OTHER,
    NEG_SAME,
    POS_OTHER,
    POS_SAME,
    SELF,
    Case,
    assert_near,
    assert_near_products,
    check,
    dense,
    engine,
    make,
    outputs_of,
    weighted,
)
from helpers.global_settings import matmul_precision
from helpers.oracle import between_logits
from torch.testing import assert_close

import pycl.functional as F
from pycl import Pairs, Points, pair_stats
from pycl.backends.registry import why_not

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends.triton import backend as backend
from pycl.backends.triton import gradients, schedule
from pycl.triton_kernels import tile_table
from pycl.triton_kernels.tile_table import TileConfig

HALF_AND_SINGLE = [torch.bfloat16, torch.float32]


def table(rows: int, cols: int, piece: int, depth: int = 32, own: int = 64) -> dict[tuple[str, int, int], TileConfig]:
    """One tile for everything; ``own``: the most features for which gradients stay in registers."""
    tile = TileConfig(rows, cols, depth, 4, 1, piece=piece)
    return {(kernel, size, 1 << 30): tile for kernel in ("forward", "write_weights") for size in (2, 4)} | {
        ("backward_dx", 2, own): TileConfig(rows, cols, own, 4, 1, piece=piece)
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles, several to a program, several chunks of rows for every sweep."""
    monkeypatch.setitem(tile_table.TABLES, 0, table(64, 32, 32))
    monkeypatch.setattr(backend, "COLUMN_PARTIALS", 0)  # eight blocks of rows
    monkeypatch.setattr(schedule, "BLOCK_LISTS", 0)  # one
    monkeypatch.setattr(schedule, "SMALL", 0)  # with a block mask
    monkeypatch.setattr(gradients, "PARTIAL_GRADIENTS", 0)
    monkeypatch.setattr(gradients, "STRIP", 0)


def sorted_labels(case: Case) -> Case:
    """Views one after the other, so that whole tiles are of one class."""
    labels = {name: getattr(case, name).sort().values for name in ("row_views", "col_views")}
    return replace(case, **labels)


outputs = partial(outputs_of, "triton")
CASES: dict[str, Callable[[], Case]] = {
    "columns": lambda: make(150, 170, 40, offset=3),
    "itself": lambda: make(190, None, 40, bias=(), normalize=True, positives=POS_SAME | POS_OTHER),
    "itself_tied": lambda: make(190, None, 24, bias=("row_bias",), tied=True),
    "within_views": lambda: sorted_labels(make(190, None, 24, bias=(), denominator=NEG_SAME, positives=POS_SAME)),
    "across_views": lambda: sorted_labels(make(190, None, 24, bias=(), denominator=NEG_OTHER, positives=POS_OTHER)),
    "steep": lambda: make(100, 130, 40, scale=90.0, normalize=True),
    "scale_of_rows": lambda: make(100, 130, 40, scale="rows", positives=SELF, offset=-20),
    "one_side": lambda: make(150, 130, 40, sides="rows", bias=("col_bias",), denominator=ALL, offset=None),
    "wide": lambda: make(70, 100, 200, normalize=True),
}


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_many_tiles(small: None, case: str, dtype: torch.dtype) -> None:
    problem = CASES[case]()
    if problem.row_views is not problem.col_views and "y" not in problem.leaves:
        problem = replace(problem, col_views=problem.row_views)
    check(problem, "triton", dtype)


def test_many_rows_for_both_sides(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the eight blocks of rows whose sums over columns are combined at once."""
    monkeypatch.setitem(tile_table.TABLES, 0, table(32, 32, 32))
    check(make(300, None, 8, bias=(), normalize=True), "triton", torch.float32)
    check(make(300, 40, 8), "triton", torch.bfloat16)


@pytest.mark.parametrize("offset", [1, -1])
@pytest.mark.parametrize("n", [95, 96, 97])
def test_edges_of_full_tiles(small: None, n: int, offset: int) -> None:
    """All pairs count alike but where a tile sticks out, by one column or all but one, or has one point with itself."""
    case = make(130, n, 8, bias=(), offset=offset, denominator=ALL & ~SELF, positives=0)
    check(case, "triton", torch.float32)


def test_the_columns_mask_has_their_own_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch masks both sides; a point with itself would outweigh all others where its tile counts as full."""
    monkeypatch.setitem(tile_table.TABLES, 0, table(64, 32, 32))
    monkeypatch.setattr(schedule, "SMALL", 0)
    case = make(200, 190, 8, bias=(), offset=-70, scale=3.0, denominator=ALL & ~SELF, positives=0)
    y = case.leaves["y"].index_copy(0, torch.arange(130), 2 * case.leaves["x"][70:])
    check(case.update(y=y), "triton", torch.bfloat16)


@pytest.mark.parametrize("case", ["columns", "itself"])
def test_tile_size_does_not_matter(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = CASES[case]()
    wanted = outputs(problem)
    for shape in ((32, 32, 32), (128, 64, 32), (64, 64, 64)):
        monkeypatch.setitem(tile_table.TABLES, 0, table(*shape))
        assert_near(outputs(problem), wanted, 3e-6)


@pytest.mark.parametrize("case", ["itself", "wide"])
def test_runs_repeat_bit_by_bit(small: None, case: str) -> None:
    problem = CASES[case]()
    for dtype in HALF_AND_SINGLE:
        assert all(torch.equal(a, b) for a, b in zip(outputs(problem, dtype), outputs(problem, dtype), strict=True))


@pytest.mark.parametrize("case", ["columns", "itself", "scale_of_rows", "wide"])
def test_reduced_precision(case: str) -> None:
    """Three products of bfloat16 halves, as on CPUs, or one of bfloat16; of unit vectors that is float16, of 2^-11."""
    problem = CASES[case]()
    wanted, errors = outputs(problem), {}
    for name, digits in (("high", 3 * 2**-18), ("medium", 2**-10 if problem.normalize else 2**-8)):
        with matmul_precision(name):
            found = outputs(problem)
        assert_near_products(found, wanted, problem, digits)
        errors[name] = (found[0] - wanted[0]).abs().max().item()
    assert 0 < errors["high"] < errors["medium"] / 20


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=["exact_products", "rounded_products"])
def test_a_saturated_softmax(exact: bool, dtype: torch.dtype) -> None:
    """A pair that is all of its sum weighs 1 - 1: nothing comes of it but what two products of one pair are apart."""
    points, scale = torch.randn(150, 64), torch.tensor(400.0, requires_grad=True)
    points = points.sign() / 8 if exact else torch.nn.functional.normalize(points)  # sums of 1/64 have no rounding
    z = points.to(dtype).requires_grad_()
    size = 400 * z.detach().float().square().sum(1).max().item()
    of_one, of_two = (0.0 if exact else math.expm1(between_logits(size, d)) for d in (0, 64))
    for function, *arguments in ((F.info_nce, z, z), (F.nt_xent, [z, z]), (F.clip, z, z)):
        options = {"logit_scale": scale} if function is F.clip else {"temperature": 1 / scale}
        value = function(*arguments, **options, normalize=False, backend="triton")
        d_z, d_scale = torch.autograd.grad(value, [z, scale])
        assert value.abs() <= of_one
        assert d_scale.abs() <= of_two * size / 400  # all weights together, each times its product
        # a point is in two pairs, or twice in one, of 1/150 of the weight
        assert (d_z.abs() <= of_two * 400 * 2 / 150 * z.abs()).all(), f"{function.__name__}: {d_z.abs().max():.3g}"


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("leaf", ["x", "y", "row_bias", "col_bias"])
def test_not_a_number_stays_where_it_is(leaf: str, poison: float) -> None:
    case = make(60, 50, 6, scale="rows", denominator=ALL, positives=POS_SAME | POS_OTHER, offset=None)
    case.leaves[leaf].view(-1)[0] = poison
    for dtype in HALF_AND_SINGLE:
        truth = dense(case, {name: t.to(dtype).double() for name, t in case.leaves.items()})[0]
        for got, wanted in zip(outputs(case, dtype)[: len(truth)], truth, strict=True):
            where = wanted.isfinite()
            assert torch.equal(got.isfinite(), where)
            assert_close(got[where].double(), wanted[where], rtol=0.02, atol=0.05)


@pytest.mark.parametrize("change", ["transposed", "expanded", "sliced", "odd"])
def test_strides_do_not_matter(change: str) -> None:
    base = torch.randn(40, 24).bfloat16()
    x = {
        "transposed": base.T.contiguous().T,
        "expanded": base[:1].expand(40, 24),
        "sliced": torch.cat([base, base], 1)[:, 3:27],
        "odd": base[:, :23],
    }[change]
    found = []
    for z in (x, x.contiguous()):
        z = z.detach().requires_grad_()
        value = F.clip(z, base[:, : z.shape[1]].roll(1, 0), 3.0, backend="triton")
        found.append([value, *torch.autograd.grad(value, z)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "wanted", [("x",), ("y",), ("scale",), ("row_bias",), ("col_bias", "y"), ("scale", "x")], ids=str
)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_only_some_gradients(wanted: tuple[str, ...], dtype: torch.dtype) -> None:
    case = make(40, 50, 12, scale="rows")
    leaves = {name: t.to(dtype if name in ("x", "y") else torch.float32) for name, t in case.leaves.items()}
    every = dict(zip(leaves, outputs(case, dtype)[-len(leaves) :], strict=True))
    some = {name: t.clone().requires_grad_(name in wanted) for name, t in leaves.items()}
    total = sum(weighted(engine(case, some, "triton")))
    for name, got in zip(wanted, torch.autograd.grad(total, [some[name] for name in wanted]), strict=True):
        assert_close(got, every[name], rtol=1e-5, atol=1e-5)


def test_addresses_beyond_32_bits() -> None:
    step = 2**30 + 7
    storage = torch.empty(2 * step + 64, dtype=torch.bfloat16)  # committed by the system where it is touched
    for shape, stride in (((3, 20), (step, 1)), ((20, 3), (1, step))):
        near, far = torch.randn(shape).bfloat16(), storage.as_strided(shape, stride)
        far.copy_(near)
        found = []
        for z in (near, far):
            z = z.detach().requires_grad_()
            stats = pair_stats(Points(z), denominator=Pairs.ALL, normalize=True, backend="triton")
            found.append([stats.lse.detach(), *torch.autograd.grad(stats.lse.sum(), z)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
