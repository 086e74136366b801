# SPDX-License-Identifier: Apache-2.0
"""Statistics over prefixes of the features, against the dense formula in float64 of each prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from helpers.global_settings import threads
from helpers.oracle import FLOOR, assert_as_accurate
from helpers.spawn import on_ranks
from torch import Tensor
from torch.testing import assert_close

from pycl.backends import registry
from pycl.core.problem import Needs, Problem
from pycl.engine import Pairs, PairStats, Points, pair_stats, prefix_stats


class Case(NamedTuple):
    m: int
    n: int | None  # None for a symmetric problem
    d: int
    prefixes: Sequence[int]
    scale: float = 5.0
    n_views: int = 1
    sides: str = "both"


CASES = {
    "short_of_d": Case(67, 131, 150, (32, 64, 96, 101)),
    "all_features": Case(70, 53, 96, (32, 96)),
    "steep": Case(66, 81, 70, (32, 64, 70), scale=100.0),
    "some_bounds_are_proven": Case(60, 70, 128, (32, 64, 128), scale=24.0),
    "rows": Case(31, 45, 64, (32, 64), sides="rows"),
    "views": Case(150, None, 100, (64, 100), n_views=3),
    "itself_steep": Case(146, None, 70, (32, 64, 70), scale=100.0, n_views=2),
    "not_of_one_sweep": Case(20, 30, 70, (3, 32, 50, 64)),
    "one": Case(20, 30, 70, (33,)),
    "one_pair": Case(1, 1, 40, (32, 33)),
    "most": Case(10, 9, 600, tuple(range(32, 18 * 32 + 1, 32))),
    "large_tiles": Case(400, 390, 96, (32, 64, 96)),
}
CASE = pytest.mark.parametrize("case", CASES)
DTYPE = pytest.mark.parametrize("dtype", FLOOR, ids=str)
SWEPT = ["short_of_d", "steep", "some_bounds_are_proven", "rows", "views", "itself_steep", "one_pair", "most",
         "large_tiles"]  # fmt: skip


def leaves_of(case: Case, dtype: torch.dtype, zero: bool = True) -> dict[str, Tensor]:
    """With a row of zeros, one whose first features are zeros, and rows of other lengths."""
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    scale = torch.tensor(case.scale).to(wide)
    leaves = {"x": torch.randn(case.m, case.d)}
    if case.n is not None:
        leaves["y"] = torch.randn(case.n, case.d) + leaves["x"][0]
    for z in leaves.values():
        z *= torch.logspace(-1, 1, len(z))[:, None]
        if zero and len(z) > 4:
            z[3], z[4, :40] = 0, 0
    return {name: z.to(dtype) for name, z in leaves.items()} | {"scale": scale}


def options_of(case: Case) -> dict[str, Any]:
    offset = 0 if case.n is None else None
    return {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE, "offset": offset}


def swept(case: Case, backend: str | None, leaves: dict[str, Tensor], **more: Any) -> list[Tensor]:
    sides = [Points(leaves[name], n_views=case.n_views) for name in ("x", "y") if name in leaves]
    found = prefix_stats(*sides, logit_scale=leaves["scale"], prefixes=case.prefixes, sides=case.sides,
                         backend=backend, **options_of(case), **more)  # fmt: skip
    return [*found] if isinstance(found, PairStats) else [*found[0], *found[1]]


def unit(z: Tensor) -> Tensor:
    """Without a gradient of the norm where that is 0, as it is clamped there."""
    squares = z.square().sum(1, keepdim=True)
    return z / torch.where(squares == 0, 1, squares).sqrt().where(squares != 0, 1e-12)


def dense(case: Case, leaves: dict[str, Tensor]) -> list[Tensor]:
    """Each prefix's statistics from its whole matrix."""
    x, y = leaves["x"], leaves.get("y", leaves["x"])
    (m, n), found = (len(x), len(y)), []
    instance, itself = torch.arange(m) % (m // case.n_views), torch.eye(m, dtype=torch.bool)
    if case.n is None:
        pairs, positives = ~itself, (instance[:, None] == instance) & ~itself
    else:
        pairs, positives = torch.ones(m, n, dtype=torch.bool), torch.arange(m)[:, None] == torch.arange(n)
    for dim in (1, 0) if case.sides == "both" else (1,):
        of_prefixes = []
        for d in case.prefixes:
            logits = leaves["scale"] * unit(x[:, :d]) @ unit(y[:, :d]).T
            lses = [logits.masked_fill(~chosen, -torch.inf).logsumexp(dim) for chosen in (pairs, positives)]
            sums = torch.where(positives, logits, 0).sum(dim), positives.sum(dim).to(logits.dtype)
            of_prefixes.append((*lses, *sums))
        found += [torch.stack(of) for of in zip(*of_prefixes, strict=True)]
    return found


def with_gradients(
    function: Callable[[dict[str, Tensor]], list[Tensor]], leaves: dict[str, Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The results, and the gradients of a sum in which every finite one has a weight of its own."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    found, total = function(leaves), torch.zeros((), dtype=torch.float64)
    for t in found:
        weights = torch.linspace(0.5, 1.5, t.numel(), dtype=torch.float64).view(t.shape)
        total = total + (t.double().masked_fill(t == -torch.inf, 0) * weights).sum() / leaves["scale"].item()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return [t.detach() for t in found], dict(zip(leaves, gradients, strict=True))


def check(case: Case, backend: str | None, dtype: torch.dtype) -> None:
    leaves = leaves_of(case, dtype, zero=dtype != torch.float16)
    truth, d_truth = with_gradients(partial(dense, case), {name: t.double() for name, t in leaves.items()})
    eager, d_eager = with_gradients(partial(dense, case), {name: t.to(dtype) for name, t in leaves.items()})
    got, d_got = with_gradients(partial(swept, case, backend), leaves)
    for mine, of_torch, true in zip(got, eager, truth, strict=True):
        assert mine.dtype == leaves["scale"].dtype
        assert mine.shape == true.shape
        empty = true == -torch.inf
        assert torch.equal(mine == -torch.inf, empty)
        finite = [t.masked_fill(empty, 0) for t in (mine, of_torch, true)]
        assert_as_accurate(*finite, dtype, magnitude=case.scale)
    for name, true in d_truth.items():
        assert d_got[name].dtype == leaves[name].dtype
        # a row at a time: those of zeros have gradients 1e12 times as large
        size = true.abs().amax(-1, keepdim=True).clamp_min(1e-3 * true.abs().median())
        assert_as_accurate(d_got[name] / size, d_eager[name] / size, true / size, dtype, magnitude=case.scale)


@DTYPE
@CASE
def test_against_dense(case: str, dtype: torch.dtype, backend: str) -> None:
    check(CASES[case], backend, dtype)


@DTYPE
@pytest.mark.parametrize("case", SWEPT)
def test_instruction_sets(case: str, dtype: torch.dtype, isa: str) -> None:
    check(CASES[case], "cpu", dtype)


@CASE
def test_one_pass_for_each_is_the_same(case: str) -> None:
    """The operator of one sweep and what is made without it."""
    leaves = leaves_of(CASES[case], torch.float32, zero=False)
    found = [with_gradients(partial(swept, CASES[case], backend), leaves) for backend in ("cpu", "reference")]
    assert registry.has("cpu", "prefix_stats")
    assert not registry.has("reference", "prefix_stats")
    for mine, wanted in zip(found[0][0], found[1][0], strict=True):
        assert_close(mine, wanted, rtol=1e-5, atol=1e-4)
    for name, gradient in found[0][1].items():
        assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_threads", [2, 3])
@pytest.mark.parametrize("case", ["large_tiles", "views"])
def test_threads(case: str, n_threads: int) -> None:
    leaves = leaves_of(CASES[case], torch.float32, zero=False)
    with threads(1):
        one = with_gradients(partial(swept, CASES[case], "cpu"), leaves)
    with threads(n_threads):
        several = with_gradients(partial(swept, CASES[case], "cpu"), leaves)
    for found, wanted in zip((*several[0], *several[1].values()), (*one[0], *one[1].values()), strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(dtype: torch.dtype) -> None:
    case = CASES["short_of_d"]
    leaves = leaves_of(case, dtype)
    spread = {name: torch.stack([t, t], 1)[:, 0] if t.dim() else t for name, t in leaves.items()}
    turned = {name: t.T.contiguous().T if t.dim() else t for name, t in leaves.items()}
    wanted = swept(case, "cpu", leaves)
    for strided in (spread, turned):
        for found, want in zip(swept(case, "cpu", strided), wanted, strict=True):
            assert_close(found, want)


def test_rows_whose_squares_are_out_of_range() -> None:
    case = CASES["short_of_d"]
    leaves = leaves_of(case, torch.float32, zero=False)
    wanted, gradients = with_gradients(partial(swept, case, "cpu"), leaves)
    huge = {name: t * 2.0**100 if t.dim() else t for name, t in leaves.items()}
    found, of_huge = with_gradients(partial(swept, case, "cpu"), huge)
    for mine, want in zip(found, wanted, strict=True):
        assert_close(mine, want, rtol=1e-5, atol=1e-5)
    for name in ("x", "y"):
        assert_close(of_huge[name] * 2.0**100, gradients[name], rtol=1e-3, atol=1e-5)
    tiny = {name: t * 2.0**-100 if t.dim() else t for name, t in leaves.items()}  # shorter than 1e-12
    found, of_tiny = with_gradients(partial(swept, case, "cpu"), tiny)
    exact = with_gradients(partial(swept, case, "cpu"), {name: t.double() for name, t in tiny.items()})[1]
    assert found[2].abs().max() < 1e-30, "the sums of the positives"
    for name in ("x", "y"):
        largest = exact[name].abs().max().item()
        assert_close(of_tiny[name], exact[name].float(), rtol=1e-4, atol=1e-6 * largest)


def test_rows_of_zeros_in_float16() -> None:
    case = CASES["short_of_d"]
    gradients = with_gradients(partial(swept, case, "cpu"), leaves_of(case, torch.float16))[1]
    for name in ("x", "y"):
        assert gradients[name].isfinite().all()
        assert not gradients[name][3].any()
        assert gradients[name][5].any()


def test_not_a_number_stays_where_it_is() -> None:
    case = CASES["rows"]
    leaves = leaves_of(case, torch.float32)
    leaves["x"][7, 40] = torch.nan
    lse = swept(case, "cpu", leaves)[0]
    assert torch.equal(lse.isnan().nonzero(), torch.tensor([[1, 7]])), "the second prefix of the row alone"


@pytest.mark.float64
@pytest.mark.parametrize("n", [7, None])
def test_gradcheck(n: int | None, backend: str) -> None:
    case = Case(6, n, 40, (32, 38), n_views=1 if n else 3)
    leaves = leaves_of(case, torch.float64, zero=False)

    def function(*tensors: Tensor) -> list[Tensor]:
        found = swept(case, backend, dict(zip(leaves, tensors, strict=True)))
        return [t.masked_fill(t == -torch.inf, 0) for k, t in enumerate(found) if k % 4 < 3]

    assert torch.autograd.gradcheck(function, [t.clone().requires_grad_() for t in leaves.values()], atol=1e-4)


@pytest.mark.float64
def test_a_scale_of_each_row(backend: str) -> None:
    """Points that meet themselves are no symmetric problem then."""
    x, scale = torch.randn(20, 70, dtype=torch.float64), torch.rand(20, dtype=torch.float64) + 1
    scale.requires_grad_()
    sets: dict[str, Any] = {"denominator": Pairs.OTHERS, "backend": backend}
    found = prefix_stats(Points(x), None, scale, prefixes=(32, 70), **sets).lse
    wanted = torch.stack([pair_stats(Points(x[:, :d]), None, scale, normalize=True, **sets).lse for d in (32, 70)])
    assert_close(found, wanted)
    weights = torch.randn_like(found)
    assert_close(*(torch.autograd.grad((lse * weights).sum(), scale) for lse in (found, wanted)))


@pytest.mark.parametrize("kind", ["itself", "columns"])
def test_opcheck(kind: str) -> None:
    both, ops, ends = kind == "columns", torch.ops.pycl, (32, 40)
    x, y = torch.randn(7, 40), torch.randn(9, 40) if both else None
    sets = int(Pairs.OTHERS), int(Pairs.POSITIVE)
    p = Problem(x, y, *[None] * 4, torch.tensor(1.0), None, None, *sets, None if both else 0, False)
    row_factor, col_factor = torch.rand(2, 7), torch.rand(2, 9 if both else 7)
    torch.library.opcheck(ops.prefix_stats.default, (*p, row_factor, col_factor, ends, both, "cpu"))
    stats = ops.prefix_stats(*p, row_factor, col_factor, ends, both, "cpu")
    of_rows = torch.randn(2, 7), None, torch.randn(2, 7)
    of_cols = (None, torch.randn(2, 9), None) if both else (None,) * 3
    needs = Needs(rows=True, cols=both, bias=False)
    arguments = (*p, row_factor, col_factor, ends, *stats, *of_rows, *of_cols, needs, "cpu")
    torch.library.opcheck(ops.prefix_stats_backward.default, arguments)


def objective(x: Tensor, y: Tensor, backend: str) -> Tensor:
    sets: dict[str, Any] = {"denominator": Pairs.OTHERS, "positives": Pairs.SELF, "backend": backend}
    of_rows, of_cols = prefix_stats(Points(x), Points(y), 2.0, prefixes=(5, 32, 40), sides="both", **sets)
    itself = prefix_stats(Points(x), prefixes=(32, 64), **sets)
    parts = of_rows.lse, of_cols.lse, of_rows.pos_lse, of_cols.pos_sum, itself.lse
    return sum((t * torch.arange(1.0, t.numel() + 1).view(t.shape)).sum() for t in parts)


def test_compile(backend: str) -> None:
    torch.compiler.reset()
    x, y = (torch.randn(9, 64, requires_grad=True) for _ in range(2))
    compiled = torch.compile(partial(objective, backend=backend), fullgraph=True, backend="aot_eager")
    found, wanted = compiled(x, y), objective(x, y, backend)
    assert_close(found, wanted)
    assert_close(torch.autograd.grad(found, (x, y)), torch.autograd.grad(wanted, (x, y)))


def test_transforms(backend: str) -> None:
    x, y = torch.randn(2, 3, 9, 64)
    gradient = torch.func.grad(partial(objective, backend=backend), argnums=(0, 1))
    found = torch.func.vmap(gradient)(x, y)
    for k, wanted in enumerate(zip(*(gradient(a, b) for a, b in zip(x, y, strict=True)), strict=True)):
        assert_close(found[k], torch.stack(wanted))


@pytest.mark.parametrize("leaf", ["x", "scale"])
def test_second_derivatives_are_refused(leaf: str, backend: str) -> None:
    leaves = {name: t.requires_grad_(name == leaf) for name, t in leaves_of(CASES["rows"], torch.float32).items()}
    (gradient,) = torch.autograd.grad(swept(CASES["rows"], backend, leaves)[0].sum(), leaves[leaf], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("wanted", [("x",), ("y",), ("scale",), ()], ids=str)
def test_what_is_not_wanted_is_not_computed(wanted: Sequence[str]) -> None:
    case = CASES["short_of_d"]
    leaves = leaves_of(case, torch.float32)
    every = with_gradients(partial(swept, case, "cpu"), leaves)[1]
    some = {name: t.clone().requires_grad_(name in wanted) for name, t in leaves.items()}
    found = swept(case, "cpu", some)
    assert found[0].requires_grad == bool(wanted)
    for name in wanted:
        total = sum((t.masked_fill(t == -torch.inf, 0) * torch.linspace(0.5, 1.5, t.numel()).view(t.shape)).sum()
                    for t in found)  # fmt: skip
        (gradient,) = torch.autograd.grad(total / case.scale, some[name])
        assert_close(gradient, every[name], rtol=0, atol=1e-6 * float(every[name].abs().max()))  # most entries cancel


@pytest.mark.parametrize(
    ("prefixes", "error", "said"),
    [
        ((), ValueError, "ascending"),
        ((64, 32), ValueError, "ascending"),
        ((32, 32), ValueError, "ascending"),
        ((32, 71), ValueError, "at most 70"),
        ((0, 32), ValueError, "at least 1"),
        ((3.0,), TypeError, "integer"),
        (32, TypeError, "sequence"),
        ("32", TypeError, "sequence"),
    ],
)
def test_prefixes_that_cannot_be(prefixes: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        prefix_stats(Points(torch.randn(5, 70)), prefixes=prefixes, denominator=Pairs.OTHERS)


N = 11
SHARE = {0: slice(0, 7), 1: slice(7, N)}  # uneven


def of_share(at: slice, **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    x, y = (z[at].clone().requires_grad_() for z in torch.randn(2, N, 40))
    ids = torch.arange(N)[at] % 4
    found = prefix_stats(Points(x, ids), Points(y, ids), 2.0, prefixes=(32, 40), denominator=Pairs.NEGATIVE,
                         positives=Pairs.POSITIVE, offset=None, **options)  # fmt: skip
    total = sum((t * torch.linspace(-1, 1, N)[at]).sum() for t in found)
    return [*(t.detach() for t in found), *torch.autograd.grad(total, (x, y))]


def share_of_rank(rank: int, world: int) -> None:
    got = of_share(SHARE[rank], group=dist.group.WORLD)
    for mine, whole in zip(got, of_share(slice(None)), strict=True):
        assert_close(mine, whole[SHARE[rank]] if whole.shape[0] == N else whole[:, SHARE[rank]])


def test_group() -> None:
    on_ranks(2, share_of_rank)
