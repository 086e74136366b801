# SPDX-License-Identifier: Apache-2.0
"""The hardest negatives and positives, and the tops, of both sides against the dense formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.dense import ALL, SELF, extremes, make, matrix, members
from helpers.global_settings import threads
from helpers.wanted import check_only_wanted
from test_autograd import LEAVES, compiled_is_eager, leaves_that_want, problem
from torch import Tensor
from torch.testing import assert_close

from pycl.backends import reference
from pycl.backends.registry import why_not
from pycl.core.problem import Needs
from pycl.engine import PairExtremes, PairMLP, Pairs, Points, pair_extremes, pair_top

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "TILE", (12, 16))


def check_integers(m: int, n: int | None, sets: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    """Small integers: ties everywhere, and every product exact."""
    g = torch.Generator().manual_seed(m)
    case = make(m, n, 5, bias=(), scale=1.0, offset=0)
    x = torch.randint(-2, 3, case.leaves["x"].shape, generator=g).to(dtype)
    y = x if n is None else torch.randint(-2, 3, case.leaves["y"].shape, generator=g).to(dtype)
    cols = None if n is None else Points(y, case.col_ids, case.col_views)
    rows = Points(x, case.row_ids, case.row_views)
    options: dict[str, Any] = {"negatives": Pairs(sets[0]), "positives": Pairs(sets[1]), "backend": backend}
    alone, logits = pair_extremes(rows, cols, **options), x.double() @ y.double().T
    of_rows, of_cols = pair_extremes(rows, cols, sides="both", **options)
    for sign, pairs, at in ((1, sets[0], 0), (-1, sets[1], 1)):
        inside = members(replace(case, denominator=pairs))
        wanted, wanted_of_cols = extremes(logits, inside, sign), extremes(logits.T, inside.T, sign)
        for found, (true, where) in ((alone, wanted), (of_rows, wanted), (of_cols, wanted_of_cols)):
            assert torch.equal(found[at].double(), true)
            assert torch.equal(found[at + 2], where)


SETS = [(24, 6), (31, 31), (0, 1), (8, 0), (31, 0), (16, 2), (25, 4)]


@pytest.mark.parametrize("sets", SETS, ids=str)
@pytest.mark.parametrize(("m", "n"), [(29, 41), (37, None), (1, 1), (5, 131), (200, 97)], ids=str)
def test_ties(m: int, n: int | None, sets: tuple[int, int], backend: str) -> None:
    check_integers(m, n, sets, torch.float32, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, backend: str) -> None:
    if reason := why_not(backend, "cpu", dtype):
        pytest.skip(reason)
    check_integers(45, 38, (24, 6), dtype, backend)


@pytest.mark.parametrize("sets", SETS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_instruction_sets(dtype: torch.dtype, sets: tuple[int, int], isa: str) -> None:
    check_integers(301, 270, sets, dtype, "cpu")


@pytest.mark.parametrize("n_threads", [2, 3])
def test_ties_between_tiles_of_several_workers(n_threads: int) -> None:
    """The blocks of rows that a block of columns meets come in another order than with one worker."""
    with threads(n_threads):
        check_integers(700, 650, (31, 31), torch.float32, "cpu")


@pytest.mark.parametrize("offset", [0, None])
def test_biases_that_leave_candidates_out(offset: int | None, backend: str) -> None:
    x, y, bias = torch.randn(9, 4), torch.randn(70, 4), torch.zeros(70)
    bias[::2] = -torch.inf
    sets = {"negatives": Pairs.ALL, "positives": Pairs.ALL}
    found = pair_extremes(Points(x), Points(y), col_bias=bias, offset=offset, backend=backend, **sets)
    logits = (x @ y.T)[:, 1::2]
    assert_close(found.negative, logits.amax(1))
    assert_close(found.positive, logits.amin(1))
    assert torch.equal(found.negative_index, logits.argmax(1) * 2 + 1)
    nothing = pair_extremes(Points(x), Points(y), col_bias=bias - torch.inf, offset=offset, backend=backend, **sets)
    assert (nothing.negative == -torch.inf).all()
    assert (nothing.positive == torch.inf).all()
    assert (nothing.negative_index == -1).all()
    assert (nothing.positive_index == -1).all()


def test_biases_that_leave_candidates_and_anchors_out(backend: str) -> None:
    """Seen from the columns: those with a bias of -inf have no row, and rows with one are no candidates."""
    x, y, row_bias, col_bias = torch.randn(70, 4), torch.randn(9, 4), torch.zeros(70), torch.zeros(9)
    row_bias[::2] = col_bias[3] = -torch.inf
    options: dict[str, Any] = {"negatives": Pairs.ALL, "positives": Pairs.ALL, "offset": None, "backend": backend}
    _, found = pair_extremes(Points(x), Points(y), row_bias=row_bias, col_bias=col_bias, sides="both", **options)
    logits = (x @ y.T + row_bias[:, None] + col_bias).T
    for at, sign in ((0, 1), (1, -1)):
        value, index = extremes(logits, torch.ones_like(logits, dtype=torch.bool), sign)
        assert_close(found[at], value)
        assert torch.equal(found[at + 2], index)


def test_nan_comes_first(backend: str) -> None:
    x, y = torch.randn(70, 3), torch.randn(67, 3)
    y[[5, 60]], x[3] = torch.nan, torch.nan
    options: dict[str, Any] = {"negatives": Pairs.ALL, "positives": Pairs.ALL, "offset": None, "backend": backend}
    of_rows, of_cols = pair_extremes(Points(x), Points(y), sides="both", **options)
    first_column = torch.full((70,), 5).index_fill(0, torch.tensor(3), 0)
    first_row = torch.full((67,), 3).index_fill(0, torch.tensor([5, 60]), 0)
    for found, expected in ((of_rows, first_column), (of_cols, first_row)):
        assert found.negative.isnan().all()
        assert found.positive.isnan().all()
        assert torch.equal(found.negative_index, expected)
        assert torch.equal(found.positive_index, expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_logits_of_columns(sign: int, backend: str) -> None:
    """A positive of inf is a candidate; a logit of -inf is none."""
    if backend == "triton":
        pytest.skip("it searches positives with all signs turned, where one of inf is no candidate")
    x, y = torch.ones(5, 1), torch.tensor([[torch.inf], [0.0], [-torch.inf]])
    options: dict[str, Any] = {"negatives": Pairs.ALL, "positives": Pairs.ALL, "offset": None, "backend": backend}
    _, found = pair_extremes(Points(x), Points(sign * y), sides="both", **options)
    wanted = [torch.inf, 0.0, -torch.inf], [torch.inf, 0.0, torch.inf], [0, 0, -1], [0, 0, -1]
    for got, want in zip(found, wanted, strict=True):
        assert torch.equal(got, torch.tensor(want[::sign]))


@pytest.mark.parametrize("of_scale", [False, True])
def test_points_that_meet_themselves(of_scale: bool, backend: str) -> None:
    """The matrix is symmetric with one scale, and the columns have what the rows have, gradients too."""
    x, scale = torch.randn(20, 4, requires_grad=True), torch.rand(20) + 1 if of_scale else 2.0
    points, options = Points(x, torch.arange(20) % 5), {"negatives": Pairs.NEGATIVE, "positives": Pairs.POSITIVE}
    found = pair_extremes(points, None, scale, sides="both", backend=backend, **options)
    other = Points(x, points.ids)
    wanted = pair_extremes(points, other, scale, sides="both", backend=backend, **options)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs)
    gradients = [torch.autograd.grad(c.negative.sum() - 2 * c.positive.sum(), x)[0] for _, c in (found, wanted)]
    assert_close(*gradients)


@pytest.mark.float64
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("of_rows", [False, True])
def test_gradients_of_both_sides(of_rows: bool, normalize: bool, backend: str) -> None:
    """And of one side or one value alone, where the others have no gradient at all."""
    ids = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 2, 7, 0])
    leaves = [torch.randn(5, 3), torch.randn(6, 3), torch.rand(5) + 1 if of_rows else torch.tensor(1.7)]
    leaves = [t.double().requires_grad_() for t in (*leaves, torch.randn(5), torch.randn(6))]

    def run(x: Tensor, y: Tensor, scale: Tensor, row_bias: Tensor, col_bias: Tensor) -> tuple[Tensor, ...]:
        rows, cols = pair_extremes(
            Points(x, ids[0]), Points(y, ids[1]), scale, negatives=Pairs(24), positives=Pairs(6), row_bias=row_bias,
            col_bias=col_bias, offset=None, normalize=normalize, sides="both", backend=backend,
        )  # fmt: skip
        return rows.negative, rows.positive[:4], cols.negative, cols.positive[ids[1] != 7]

    for wanted in (slice(4), slice(2, 4), slice(3, 4)):
        assert torch.autograd.gradcheck(lambda *x, at=wanted: run(*x)[at], leaves)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("of_rows", [False, True])
def test_gradients(of_rows: bool, normalize: bool) -> None:
    ids = torch.tensor([0, 0, 1, 2, 3])
    leaves = [torch.randn(5, 3), torch.randn(6, 3), torch.rand(5) + 1 if of_rows else torch.tensor(1.7)]
    leaves = [t.double().requires_grad_() for t in (*leaves, torch.randn(5), torch.randn(6))]

    def run(x: Tensor, y: Tensor, scale: Tensor, row_bias: Tensor, col_bias: Tensor) -> Any:
        cols = Points(y, torch.tensor([0, 1, 1, 2, 7, 0]))
        found = pair_extremes(
            Points(x, ids), cols, scale, negatives=Pairs(24), positives=Pairs(6), row_bias=row_bias, col_bias=col_bias,
            offset=None, normalize=normalize,
        )  # fmt: skip
        plain = pair_extremes(
            Points(x.detach(), ids), Points(y.detach(), cols.ids), scale.detach(), negatives=Pairs(24),
            positives=Pairs(6), row_bias=row_bias.detach(), col_bias=col_bias.detach(), offset=None,
            normalize=normalize,
        )  # fmt: skip
        assert_close(tuple(t.detach() for t in found), tuple(plain))
        return found.negative, found.positive[:4]

    assert torch.autograd.gradcheck(run, leaves)
    bad = leaves[0].detach().clone()
    bad[4, 0] = torch.inf
    bad.requires_grad_()
    found = pair_extremes(Points(bad, ids), Points(leaves[1], ids.new_tensor([0, 1, 1, 2, 7, 0])), negatives=Pairs.NONE,
                          positives=Pairs(6), offset=None)  # fmt: skip
    assert found.positive[4] == torch.inf
    assert torch.equal(torch.autograd.grad(found.positive.sum(), bad)[0][4], torch.zeros(3).double())


@pytest.mark.parametrize("bad", ["row", "column"])
def test_what_was_not_chosen_has_no_gradient(bad: str, backend: str) -> None:
    """Although its norm, its scale or its data is infinite or NaN: the others' gradients are as without it."""
    ids, col_ids = torch.tensor([0, 1, 2, 9]), torch.tensor([7, 0, 1, 2])  # the last row and the first column are alone
    x, y, scale, p, q = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4) + 1, torch.randn(4, 2), torch.randn(4, 2)
    rows, cols = slice(4), slice(4) if bad == "column" else slice(1, 4)
    if bad == "row":
        x[3], scale[3], p[3] = torch.nan, torch.inf, torch.nan
    else:
        y[0], q[0] = torch.inf, torch.nan
    weights, found = (torch.randn(2), torch.tensor(0.5)), []
    for of_rows, of_cols in ((rows, cols), (slice(3) if bad == "row" else rows, slice(1, 4))):
        leaves = [x[of_rows], y[of_cols], scale[of_rows], p[of_rows], q[of_cols]]
        leaves = [z.clone().requires_grad_() for z in leaves]
        points = Points(leaves[0], ids[of_rows]), Points(leaves[1], col_ids[of_cols]), leaves[2]
        options: dict[str, Any] = {"offset": None, "normalize": True, "backend": backend}
        options["modifiers"] = [PairMLP(*leaves[3:], *weights)]
        hardest = pair_extremes(*points, negatives=Pairs.NONE, positives=Pairs.POSITIVE, **options)
        assert torch.equal(hardest.positive_index[:3], torch.arange(len(leaves[1]))[-3:])
        found.append(torch.autograd.grad(hardest.positive[:3].sum() + hardest.negative.sum(), leaves))
    for whole, part in zip(*found, strict=True):
        assert_close(whole[:3] if bad == "row" else whole[-len(part) :], part)
        rest = whole[3:] if bad == "row" else whole[: -len(part)]
        assert torch.equal(rest, torch.zeros_like(rest))


def test_a_row_of_zeros_in_half_precision(backend: str) -> None:
    """Its gradient is 1e12 times the candidate's embedding, which float16 has not: clamped, as that of other sums."""
    x, y = torch.randn(3, 4).half(), torch.randn(5, 4).half()
    x[1], y[2] = 0, 0
    x.requires_grad_()
    y.requires_grad_()
    ids = torch.zeros(3, dtype=torch.int64), torch.tensor([1, 0, 0, 1, 1])
    sets = {"negatives": Pairs.NONE, "positives": Pairs.POSITIVE}
    found = pair_extremes(Points(x, ids[0]), Points(y, ids[1]), offset=None, normalize=True, backend=backend, **sets)
    gradients = torch.autograd.grad(found.positive.sum(), [x, y])
    assert all(g.isfinite().all() for g in gradients)
    at = found.positive_index
    units = [torch.nn.functional.normalize(z.detach().float(), dim=1) for z in (x, y)]
    assert_close(gradients[0][1].float(), (1e12 * units[1][at[1]]).clamp(-65504, 65504))
    of_zero = units[0][at == 2].sum(0)
    assert_close(gradients[1][2].float(), (1e12 * of_zero).clamp(-65504, 65504))


@pytest.mark.parametrize("bad", ["row", "column"])
def test_what_no_column_chose_has_no_gradient(bad: str, backend: str) -> None:
    ids, col_ids = torch.tensor([0, 1, 2, 9]), torch.tensor([7, 0, 1, 2])
    x, y, scale = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4) + 1
    if bad == "row":
        x[3], scale[3] = torch.nan, torch.inf
    else:
        y[0] = torch.inf
    leaves = [z.requires_grad_() for z in (x, y, scale)]
    options: dict[str, Any] = {"offset": None, "normalize": True, "backend": backend, "sides": "both"}
    sets = {"negatives": Pairs.NONE, "positives": Pairs.POSITIVE}
    _, found = pair_extremes(Points(x, ids), Points(y, col_ids), scale, **sets, **options)
    assert torch.equal(found.positive_index, torch.tensor([-1, 0, 1, 2]))
    gradients = torch.autograd.grad(found.positive[1:].sum() + found.negative.sum(), leaves)
    u, v, s = (z.detach()[at].requires_grad_() for z, at in zip(leaves, (slice(3), slice(1, 4), slice(3)), strict=True))
    normalize = torch.nn.functional.normalize
    wanted = torch.autograd.grad((s * (normalize(u) * normalize(v)).sum(1)).sum(), [u, v, s])
    for got, want, chosen in zip(gradients, wanted, (slice(3), slice(1, 4), slice(3)), strict=True):
        assert_close(got[chosen], want)
    assert not any(got[rest].any() for got, rest in zip(gradients, (3, 0, 3), strict=True))


def everything(leaves: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
    rows, cols = Points(leaves["x"], torch.arange(5) % 3), Points(leaves["y"], torch.arange(6) % 3)
    bias = {name: leaves[name] for name in ("row_bias", "col_bias")}
    sets = {"negatives": Pairs.NEGATIVE, "positives": Pairs.POSITIVE}
    options: dict[str, Any] = {"offset": None, "normalize": True, "sides": "both", "backend": backend}
    of_rows, of_cols = pair_extremes(rows, cols, leaves["scale"], **sets, **bias, **options)
    return *of_rows, *of_cols


@pytest.mark.parametrize("kind", ["itself", "columns", "everything"])
def test_opcheck(kind: str, backend: str) -> None:
    p, ops = problem(kind).as_rectangular(), torch.ops.pycl
    n = p.n_cols()
    for both, d_cols in ((False, (None, None)), (True, (torch.randn(n), None)), (True, (None, torch.randn(n)))):
        torch.library.opcheck(ops.pair_extremes.default, (*p, both, backend))
        _, row_index, _, col_index = ops.pair_extremes(*p, both, backend)
        for needs in (Needs(True, True, True), Needs(kind == "columns", kind == "itself", False)):
            args = row_index, col_index, torch.randn(7), None if both else torch.randn(7), *d_cols, needs, backend
            torch.library.opcheck(ops.pair_extremes_backward.default, (*p, *args))


@pytest.mark.parametrize("wanted", LEAVES)
def test_only_what_is_wanted_is_computed(wanted: str, backend: str) -> None:
    leaves = leaves_that_want((wanted,))
    check_only_wanted(
        "pair_extremes_backward", wanted, leaves, lambda: torch.cat(everything(leaves, backend)[::4]).sum(), backend
    )


def test_values_can_be_changed_in_place(backend: str) -> None:
    leaves = leaves_that_want(LEAVES)
    values = everything(leaves, backend)[::4]
    wanted = torch.autograd.grad(2 * sum(x.sum() for x in values), list(leaves.values()), retain_graph=True)
    found = torch.autograd.grad(sum(x.mul_(2).sum() for x in values), list(leaves.values()))
    assert all(torch.equal(got, want) for got, want in zip(found, wanted, strict=True))


def test_second_derivatives_are_refused(backend: str) -> None:
    leaves = leaves_that_want(LEAVES)
    value = everything(leaves, backend)[4].square().sum()  # of the columns
    gradients = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        sum(g.square().sum() for g in gradients).backward()


def test_compile_and_transforms(backend: str) -> None:
    def function(*leaves: Tensor) -> Tensor:
        found = everything(dict(zip(LEAVES, leaves, strict=True)), backend)
        of_rows, of_cols = PairExtremes(*found[:4]), PairExtremes(*found[4:])
        total = of_rows.negative.exp().sum() + of_rows.positive.square().sum() + of_rows.negative_index.sum()
        return total + of_cols.negative.square().sum() + of_cols.positive.exp().sum() - of_cols.positive_index.sum()

    values = [t.detach() for t in leaves_that_want(()).values()]
    compiled_is_eager(function, values)
    leaves = [t.clone().requires_grad_() for t in values]
    wanted = torch.autograd.grad(function(*leaves), leaves)
    gradient = torch.func.grad(function, argnums=tuple(range(len(values))))
    assert_close(gradient(*values), wanted)
    others = [t + 0.5 for t in values]
    batched = torch.func.vmap(gradient)(*(torch.stack(pair) for pair in zip(values, others, strict=True)))
    for got, first, second in zip(batched, wanted, gradient(*others), strict=True):
        assert_close(got, torch.stack([first, second]))


@pytest.mark.parametrize("scale", ["rows", 2.0], ids=str)
@pytest.mark.parametrize("k", [1, 7, 29])
def test_tops_of_both_sides(k: int, scale: Any, backend: str) -> None:
    case = make(29, 41, 7, scale=scale, denominator=ALL & ~SELF)
    leaves = {name: t.float() for name, t in case.leaves.items()}
    points = Points(leaves["x"], case.row_ids, case.row_views), Points(leaves["y"], case.col_ids, case.col_views)
    options: dict[str, Any] = {"row_bias": leaves.get("row_bias"), "col_bias": leaves.get("col_bias")}
    options |= {"pairs": Pairs(case.denominator), "offset": case.offset, "backend": backend}
    rows, cols = pair_top(*points, k, leaves["scale"], sides="both", **options)
    one_sided = pair_top(*points, k, leaves["scale"], **options)
    assert torch.equal(rows[0], one_sided[0])
    assert torch.equal(rows[1], one_sided[1])
    dense = matrix(case, leaves).masked_fill(~members(case), -torch.inf).T
    top = dense.topk(k, 1)
    assert_close(cols[0], top.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(cols[1] == -1, top.values == -torch.inf)


def test_bad_input() -> None:
    x, y = Points(torch.randn(4, 3)), Points(torch.randn(6, 3))
    with pytest.raises(ValueError, match=r"k must be between 1 and .* 4, got 5"):
        pair_top(x, y, 5, sides="both")
    with pytest.raises(ValueError, match="sides"):
        pair_top(x, y, 2, sides="cols")  # type: ignore[call-overload]  # wrong on purpose
    with pytest.raises(ValueError, match="sides"):
        pair_extremes(x, y, negatives=Pairs.ALL, positives=Pairs.NONE, sides="cols")  # type: ignore[call-overload]  # wrong on purpose
    with pytest.raises(TypeError, match="negatives must be"):
        pair_extremes(x, y, negatives=3, positives=Pairs.NONE)  # type: ignore[arg-type]  # wrong on purpose
