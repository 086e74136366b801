# SPDX-License-Identifier: Apache-2.0
"""The matrix of logits and its largest entries against the dense formula, on every backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.dense import ALL, NEG_OTHER, NEG_SAME, POS_OTHER, SELF, Case, make, matrix, members
from helpers.oracle import FLOOR, assert_as_accurate
from torch import Tensor
from torch.testing import assert_close

from pycl import Pairs, Points, pair_logits, pair_top
from pycl.backends import reference
from pycl.backends.registry import why_not

DTYPES = pytest.mark.parametrize("dtype", FLOOR, ids=lambda t: str(t).removeprefix("torch."))
VARIANTS: dict[str, Callable[[], Case]] = {
    "plain": lambda: make(29, 41, 7, bias=(), denominator=ALL),
    "plain_itself": lambda: make(29, None, 7, bias=(), denominator=ALL, normalize=True),
    "one_pair": lambda: make(1, 1, 1, denominator=ALL),
    "ragged": lambda: make(97, 70, 33, offset=1),
    "biases": lambda: make(29, 41, 7, denominator=ALL),
    "row_bias": lambda: make(29, 41, 7, bias=("row_bias",)),
    "col_bias": lambda: make(29, 41, 7, bias=("col_bias",), normalize=True),
    "scale_of_rows": lambda: make(29, 41, 7, bias=(), scale="rows", denominator=ALL, normalize=True),
    "scale_of_rows_biases": lambda: make(29, 41, 7, scale="rows"),
    "negative_scale": lambda: make(29, 41, 7, bias=(), scale=-2.0, denominator=ALL),
    "zero_scale": lambda: make(29, 41, 7, scale=0.0),
    "disjoint": lambda: make(29, 41, 7, offset=None, denominator=NEG_SAME | NEG_OTHER),
    "rows_before": lambda: make(29, 41, 7, offset=-5, denominator=SELF),
    "rows_after": lambda: make(29, 41, 7, offset=30, denominator=SELF | POS_OTHER),
    "rows_far_away": lambda: make(29, 41, 7, offset=2**40),
    "nothing": lambda: make(29, 41, 7, denominator=0),
    "itself": lambda: make(67, None, 7, bias=()),
    "itself_tied_bias": lambda: make(37, None, 7, bias=("row_bias",), tied=True, normalize=True),
    "itself_two_biases": lambda: make(37, None, 7),
    "itself_scale_of_rows": lambda: make(37, None, 7, bias=(), scale="rows", normalize=True),
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in problems that are small enough for an interpreter."""
    monkeypatch.setattr(reference, "STRIP", 12)
    monkeypatch.setattr(reference, "TILE", (12, 16))


def serves(backend: str, dtype: torch.dtype) -> None:
    if reason := why_not(backend, "cpu", dtype):
        pytest.skip(reason)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def typed(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype if name in ("x", "y") else wide(dtype)) for name, t in case.leaves.items()}


def arguments(case: Case, leaves: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rows = Points(leaves["x"], case.row_ids, case.row_views)
    cols = Points(leaves["y"], case.col_ids, case.col_views) if "y" in leaves else None
    biases = {"row_bias": leaves.get("row_bias"), "col_bias": leaves.get("row_bias" if case.tied else "col_bias")}
    sets = {"pairs": Pairs(case.denominator), "offset": case.offset, "normalize": case.normalize}
    return (rows, cols, leaves["scale"]), sets | biases


def logits_of(case: Case, leaves: dict[str, Tensor], backend: str) -> Tensor:
    positional, options = arguments(case, leaves)
    return pair_logits(*positional, backend=backend, **options)


def top_of(case: Case, leaves: dict[str, Tensor], k: int, backend: str) -> tuple[Tensor, Tensor]:
    (rows, cols, scale), options = arguments(case, leaves)
    return pair_top(rows, cols, k, scale, backend=backend, **options)


def magnitudes(case: Case, exact: dict[str, Tensor], d_logits: Tensor) -> tuple[float, dict[str, float]]:
    """The largest logit and each gradient without cancellation."""
    x, y, scale = exact["x"].abs(), exact.get("y", exact["x"]).abs(), exact["scale"].abs().reshape(-1, 1)
    x_norm, y_norm = (
        z.norm(dim=1, keepdim=True).clamp_min(1e-12) if case.normalize else torch.ones(len(z), 1) for z in (x, y)
    )
    x, y, w = x / x_norm, y / y_norm, d_logits.abs() * members(case)
    size = (scale * (x @ y.T)).max() + sum(t.abs().max() for name, t in exact.items() if "bias" in name)
    by_row, by_col, slope = (w * scale) @ y / x_norm, (w * scale).T @ x / y_norm, (w * (x @ y.T)).sum(1)
    terms = {"x": by_row if "y" in exact else by_row + by_col, "y": by_col, "row_bias": w.sum(1), "col_bias": w.sum(0)}
    terms["scale"] = slope if exact["scale"].dim() else slope.sum()
    if case.tied:
        terms["row_bias"] = w.sum(0) + w.sum(1)
    return float(size), {name: t.max().item() for name, t in terms.items()}


def check(case: Case, backend: str, dtype: torch.dtype, arrange: Callable[[Tensor], Tensor] = lambda d: d) -> None:
    """The matrix and all gradients within the budget; outside the set -inf, whatever comes back from there ignored."""
    serves(backend, dtype)
    leaves, inside = typed(case, dtype), members(case)
    d_logits = arrange(torch.randn(inside.shape).to(dtype))
    poisoned = d_logits if inside.all() else d_logits.masked_fill(~inside, torch.nan)

    def run(function: Callable[..., Tensor], given: dict[str, Tensor], d: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        given = {name: t.detach().clone().requires_grad_() for name, t in given.items()}
        found = function(case, given)
        return found.detach(), dict(zip(given, torch.autograd.grad(found, list(given.values()), d), strict=True))

    exact = {name: t.double() for name, t in leaves.items()}
    truth, d_truth = run(matrix, exact, d_logits.double())
    eager, d_eager = run(matrix, {name: t.to(dtype) for name, t in leaves.items()}, d_logits)
    got, d_got = run(lambda c, given: logits_of(c, given, backend), leaves, poisoned)
    assert got.dtype == dtype
    assert torch.equal(got == -torch.inf, ~inside)
    size, of_gradients = magnitudes(case, exact, d_logits.double())
    assert_as_accurate(*(t.masked_fill(~inside, 0) for t in (got, eager, truth)), dtype, magnitude=size)
    for name, true in d_truth.items():
        assert d_got[name].dtype == leaves[name].dtype
        assert_as_accurate(d_got[name], d_eager[name], true, dtype, magnitude=of_gradients[name])


@DTYPES
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, dtype: torch.dtype, backend: str) -> None:
    check(VARIANTS[variant](), backend, dtype)


@pytest.mark.parametrize(("n", "offset"), [(None, 0), (17, None), (17, 4)], ids=str)
def test_pair_sets(n: int | None, offset: int | None, backend: str) -> None:
    case = make(13, n, 5, bias=(), offset=offset)
    for pairs in range(0, 32, 3):
        check(replace(case, denominator=pairs), backend, torch.float32)


@pytest.mark.parametrize("pairs", [ALL, ALL & ~SELF], ids=["all", "others"])
@pytest.mark.parametrize(
    "arrange",
    [
        lambda d: d.T.contiguous().T,
        lambda d: d[:1, :1].expand_as(d),
        lambda d: torch.stack([d, d], 2).flatten(1)[:, ::2],
    ],
    ids=["transposed", "one_number", "every_other"],
)
def test_strides_of_what_comes_back(arrange: Callable[[Tensor], Tensor], pairs: int, backend: str) -> None:
    case = make(19, 23, 5, bias=("col_bias",), denominator=pairs)
    serves(backend, torch.float32)
    d_logits, gradients = torch.randn(19, 23), []
    for d in (arrange(d_logits), arrange(d_logits).contiguous()):
        leaves = {name: t.requires_grad_() for name, t in typed(case, torch.float32).items()}
        gradients.append(torch.autograd.grad(logits_of(case, leaves, backend), list(leaves.values()), d))
    assert_close(*gradients)


@pytest.mark.parametrize("of_embeddings", [lambda z: z.T.contiguous().T, lambda z: z[:, :1].expand_as(z)])
def test_strides_of_the_inputs(of_embeddings: Callable[[Tensor], Tensor], backend: str) -> None:
    x, y = of_embeddings(torch.randn(19, 5)), of_embeddings(torch.randn(23, 5))
    options: dict[str, Any] = {"offset": None, "normalize": True, "backend": backend}
    copies = Points(x.contiguous()), Points(y.contiguous())
    assert_close(pair_logits(Points(x), Points(y), **options), pair_logits(*copies, **options))
    assert_close(pair_top(Points(x), Points(y), 3, **options)[0], pair_top(*copies, 3, **options)[0])


@pytest.mark.parametrize("length", [1e30, 1e-20], ids=str)
@pytest.mark.parametrize("pairs", [ALL, ALL & ~SELF], ids=["all", "others"])
def test_norms_out_of_the_range_of_their_squares(pairs: int, length: float, backend: str) -> None:
    case = make(9, 11, 4, bias=(), normalize=True, denominator=pairs)
    check(case.update(x=case.leaves["x"] * length), backend, torch.float32)


def test_norms_out_of_range_themselves(backend: str) -> None:
    x = torch.tensor([[3e38, 3e38, -3e38, 3e38], [3e38, 0, 0, 0]])
    got = pair_logits(Points(x), normalize=True, backend=backend)
    assert_close(got, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    assert pair_top(Points(x), None, 1, normalize=True, backend=backend)[1].tolist() == [[0], [1]]


@DTYPES
@pytest.mark.parametrize("pairs", [Pairs.ALL, Pairs.OTHERS], ids=["all", "others"])
def test_a_row_of_zeros(pairs: Pairs, dtype: torch.dtype, backend: str) -> None:
    serves(backend, dtype)
    x, y = torch.randn(5, 4).to(dtype).index_fill(0, torch.tensor(2), 0).requires_grad_(), torch.randn(6, 4).to(dtype)
    got = pair_logits(Points(x), Points(y), pairs=pairs, offset=None, normalize=True, backend=backend)
    assert (got[2] == 0).all()
    assert torch.autograd.grad(got.sum(), x)[0].isfinite().all()


@DTYPES
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("normalize", [False, True], ids=["as_given", "normalize"])
def test_what_is_not_finite_stays_so(normalize: bool, bad: float, dtype: torch.dtype, backend: str) -> None:
    serves(backend, dtype)
    x, y = torch.randn(9, 4).to(dtype), torch.randn(11, 4).to(dtype)
    x[3, 1], y[7, 0] = bad, bad
    hit = torch.zeros(9, 11, dtype=torch.bool)
    hit[3], hit[:, 7] = True, True
    for pairs in (Pairs.ALL, Pairs.OTHERS):
        got = pair_logits(Points(x), Points(y), pairs=pairs, offset=None, normalize=normalize, backend=backend)
        assert torch.equal(~got.isfinite(), hit)
    masked = pair_logits(Points(x), Points(y), pairs=Pairs.NONE, normalize=normalize, backend=backend)
    assert (masked == -torch.inf).all()


def whole_numbers(n: int | None, m: int = 13, **rest: Any) -> Case:
    """A case whose logits are small integers, exact in every dtype and full of ties."""
    case = make(m, n, 3, **rest)
    return replace(case, leaves={name: (2 * t).round() for name, t in case.leaves.items()})


def check_top(case: Case, k: int, backend: str, dtype: torch.dtype) -> None:
    """The very numbers and indices that a stable sort gives."""
    values, index = top_of(case, typed(case, dtype), k, backend)
    largest, wanted = (t[:, :k] for t in matrix(case, case.leaves).sort(dim=1, descending=True, stable=True))
    assert (values.dtype, index.dtype) == (wide(dtype), torch.int64)
    assert torch.equal(index, wanted.masked_fill(largest == -torch.inf, -1))
    assert_close(values.double(), largest, rtol=0, atol=0, equal_nan=True)


@DTYPES
@pytest.mark.parametrize(("n", "offset"), [(None, 0), (40, 2)], ids=["itself", "columns"])
@pytest.mark.parametrize("k", [1, 5, 13])
def test_top_of_ties(k: int, n: int | None, offset: int, dtype: torch.dtype, backend: str) -> None:
    serves(backend, dtype)
    bias = ("row_bias", "col_bias")
    for options in (
        {"denominator": ALL, "bias": ()},
        {"denominator": ALL & ~SELF, "bias": bias[1:], "scale": -2.0},
        {"denominator": SELF | POS_OTHER, "bias": bias, "scale": "rows"},
        {"denominator": 0},
    ):
        check_top(whole_numbers(n, offset=offset, **options), k, backend, dtype)  # type: ignore[arg-type]


@pytest.fixture(params=[1, 3])
def many_tiles(backend: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles to a program, one program or three to a row, portions of rows and of the k."""
    if backend == "triton":
        tiles = importlib.import_module("pycl.triton_kernels.tile_table")
        tile = tiles.TileConfig(32, 32, 32, 4, 1)
        monkeypatch.setitem(tiles.TABLES, 0, {("forward", size, 1 << 30): tile for size in (2, 4)})
        for name, value in {"TOP_AT_ONCE": 32, "num_splits": lambda *_: request.param}.items():
            monkeypatch.setattr(f"pycl.backends.triton.pair_top.{name}", value)
        monkeypatch.setattr("pycl.backends.triton.schedule.BLOCK_LISTS", 0)


@pytest.mark.usefixtures("many_tiles")
@pytest.mark.parametrize("k", [1, 20, 130])
@pytest.mark.parametrize("pairs", [ALL, ALL & ~SELF, SELF | POS_OTHER, NEG_SAME], ids=str)
def test_top_of_many_tiles(pairs: int, k: int, backend: str) -> None:
    case = whole_numbers(130, 64, denominator=pairs)
    case = replace(case, col_ids=case.col_ids.sort().values, row_views=case.row_views.sort().values)
    check_top(case, k, backend, torch.float32)
    y = case.leaves["y"].index_fill(0, torch.tensor([33, 34, 70]), torch.nan)
    check_top(case.update(y=y.index_fill(0, torch.tensor([3, 71, 129]), torch.inf)), k, backend, torch.float32)


@DTYPES
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "nothing"])
def test_top(variant: str, dtype: torch.dtype, backend: str) -> None:
    serves(backend, dtype)
    case = VARIANTS[variant]()
    leaves, inside = typed(case, dtype), members(case)
    k = min(6, inside.shape[1])
    values, index = top_of(case, leaves, k, backend)
    truth, eager = (matrix(case, {name: t.to(as_) for name, t in leaves.items()}) for as_ in (torch.float64, dtype))
    size, _ = magnitudes(case, {name: t.double() for name, t in leaves.items()}, torch.zeros_like(truth))
    none = index < 0
    assert torch.equal(none, torch.arange(k) >= inside.sum(1, keepdim=True))
    assert torch.equal(none, values == -torch.inf)
    for wanted, plain in (
        (truth.topk(k).values, eager.topk(k).values),  # these are the largest, and they are where the index says
        (truth.gather(1, index.clamp_min(0)), eager.gather(1, index.clamp_min(0))),
    ):
        assert_as_accurate(*(t.masked_fill(none, 0) for t in (values, plain, wanted)), dtype, magnitude=size)
    assert (values[:, 1:] <= values[:, :-1]).all()


def test_top_puts_nan_before_infinity_and_neither_before_its_like(backend: str) -> None:
    y = torch.tensor([0.0, torch.inf, 1.0, torch.nan, torch.inf, -torch.inf, 3.0, torch.nan, 2.0, torch.nan])[:, None]
    for k, wanted in ((1, [3]), (2, [3, 7]), (4, [3, 7, 9, 1]), (10, [3, 7, 9, 1, 4, 6, 8, 2, 0, -1])):
        values, index = pair_top(Points(torch.ones(2, 1)), Points(y), k, offset=None, backend=backend)
        assert index.tolist() == [wanted] * 2
        assert values[0, :3].isnan().all()
        assert_close(values[0, 3:], y[wanted[3:], 0].masked_fill(torch.tensor(wanted[3:]) < 0, -torch.inf))


def test_top_takes_both_zeros_for_one(backend: str) -> None:
    zero, bias = Points(torch.zeros(4, 1)), torch.tensor([-0.0, 0.0, -0.0, 0.0])
    assert pair_top(zero, zero, 4, -1.0, col_bias=bias, backend=backend)[1].tolist() == [[0, 1, 2, 3]] * 4


def test_top_leaves_out_what_a_bias_removes(backend: str) -> None:
    bias = torch.zeros(6).index_fill(0, torch.tensor([1, 4]), -torch.inf)
    values, index = pair_top(Points(torch.randn(3, 2)), Points(torch.randn(6, 2)), 6, col_bias=bias, backend=backend)
    assert (index[:, 4:] == -1).all()
    assert (values[:, 4:] == -torch.inf).all()
    assert index[:, :4].sort().values.tolist() == [[0, 2, 3, 5]] * 3
