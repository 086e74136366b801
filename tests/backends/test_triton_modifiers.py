# SPDX-License-Identifier: Apache-2.0
"""Modifiers of pairs in the Triton kernels, in Triton's interpreter, against dense float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.dense import ALL, POS_OTHER, POS_SAME, SELF, arguments, check, make, pair_sets, run, weighted
from helpers.modified import (
    KINDS,
    ModifiedCase,
    Modifier,
    check_modified,
    dense_logits,
    dense_outputs,
    make_modified,
    modified_engine,
    modified_problem,
    modifiers_of,
)
from helpers.oracle import assert_as_accurate
from torch import Tensor
from torch.testing import assert_close

from pycl import Pairs, engine
from pycl.backends import reference
from pycl.backends.registry import why_not

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends.triton import backend as backend
from pycl.backends.triton import gradients, launch, modifiers, schedule
from pycl.core.problem import Needs
from pycl.triton_kernels import tile_table
from pycl.triton_kernels.tile_table import TileConfig

DTYPES = [torch.float32, torch.bfloat16]
SHAPES: dict[str, Callable[..., ModifiedCase]] = {
    "columns": lambda *kinds: make_modified(make(131, 99, 24, offset=3), *kinds),
    "itself": lambda *kinds: make_modified(make(131, None, 24, bias=(), normalize=True), *kinds),
    "itself_tied": lambda *kinds: make_modified(make(97, None, 9, bias=("row_bias",), tied=True), *kinds),
    "one_side": lambda *kinds: make_modified(make(70, 130, 40, sides="rows", bias=("col_bias",), offset=None), *kinds),
    "wide": lambda *kinds: make_modified(make(65, 97, 200, normalize=True, positives=POS_SAME | POS_OTHER), *kinds),
    "scale_of_rows": lambda *kinds: make_modified(make(65, 97, 24, scale="rows", positives=SELF, offset=-20), *kinds),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles, several to a program, full ones among them, several chunks of rows for every sweep."""
    tile = TileConfig(64, 32, 32, 4, 1, piece=32)
    table = {(kernel, size, 1 << 30): tile for kernel in ("forward", "write_weights") for size in (2, 4)}
    own = {("backward_dx", 2, 64): tile._replace(depth=64)}
    monkeypatch.setitem(tile_table.TABLES, 0, table | own)
    monkeypatch.setattr(backend, "COLUMN_PARTIALS", 0)
    monkeypatch.setattr(schedule, "SMALL", 0)
    for name in ("PARTIAL_GRADIENTS", "STRIP"):
        monkeypatch.setattr(gradients, name, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(small: None, kind: str, shape: str, dtype: torch.dtype) -> None:
    check_modified(SHAPES[shape](kind), "triton", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["columns", "itself"])
@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, KINDS)), ids=" and ".join)
def test_two_kinds(small: None, kinds: tuple[str, str], shape: str, dtype: torch.dtype) -> None:
    """In both orders: limits come first in the kernels, and see what nothing was added to wherever they stand."""
    check_modified(SHAPES[shape](*kinds), "triton", dtype)


@pytest.mark.parametrize("width", [1, 2, 17, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind: str, width: int) -> None:
    """Labels, hidden units and features of a guide, beyond one step of the loop over them."""
    check_modified(make_modified(make(33, 47, 8, offset=-2), kind, width=width), "triton")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("map", ["square", "relu", "exp"])
def test_maps(small: None, kind: str, map: str) -> None:
    case = make(70, 65, 24, scale=1.0, map=map, sides="rows", offset=1)
    check_modified(make_modified(case, kind), "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["columns", "itself", "wide"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_points_have_gradients(small: None, kind: str, shape: str, dtype: torch.dtype) -> None:
    """They come from the sweep that keeps them in registers, where there is one, and not from stored weights."""
    case = SHAPES[shape](kind)
    leaves = {name: t.to(dtype if name in ("x", "y") else torch.float32) for name, t in case.leaves().items()}
    points = [name for name in leaves if name in case.case.leaves]
    _, every = run(lambda x: modified_engine(case, x, "triton"), leaves)
    some = {name: t.clone().requires_grad_(name in points) for name, t in leaves.items()}
    total = sum(weighted(modified_engine(case, some, "triton")))
    for name, got in zip(points, torch.autograd.grad(total, [some[name] for name in points]), strict=True):
        assert_close(got, every[name], rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=2e-2 * _peak(every[name]))


def _peak(t: Tensor) -> float:
    return t.abs().max().item() / (1 if t.dtype == torch.bfloat16 else 1000)


@pytest.mark.parametrize("shape", ["columns", "itself"])
def test_runs_repeat_bit_by_bit(small: None, shape: str) -> None:
    case = SHAPES[shape](*KINDS)
    leaves = {name: t.float() for name, t in case.leaves().items()}
    first, second = (run(lambda x: modified_engine(case, x, "triton"), leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert all(torch.equal(first[1][name], second[1][name]) for name in leaves)


@pytest.mark.parametrize("kept", [0, 1])
def test_all_pairs_dropped_but_one(small: None, kept: int) -> None:
    """An empty set has its documented value, no gradient and no NaN; one pair is all of its row's softmax."""
    case = make(70, 65, 8, offset=None, denominator=ALL, positives=POS_SAME)
    table = torch.zeros(2, 2).double()
    table[1, 1] = 1
    labels = {f"{side}_labels": (torch.arange(n) < kept).long() for side, n in (("row", 70), ("col", 65))}
    dropped = ModifiedCase(case, (Modifier("LabelTable", labels, {"table": table}),))
    leaves = {name: t.float() for name, t in dropped.leaves().items()}
    truth, d_truth = run(lambda x: dense_outputs(dropped, x), dropped.leaves())
    found, d_found = run(lambda x: modified_engine(dropped, x, "triton"), leaves)
    for got, true in zip(found, truth, strict=True):
        assert torch.equal(got == -torch.inf, true == -torch.inf)
        assert_close(got.double(), true, rtol=1e-5, atol=1e-5)
    for name, true in d_truth.items():
        assert_close(d_found[name].double(), true, rtol=1e-4, atol=1e-5)
    assert kept or not any(gradient.any() for gradient in d_found.values())


@pytest.mark.parametrize("shape", ["columns", "itself_tied", "one_side"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bias_of_minus_infinity_drops_positives(small: None, shape: str, dtype: torch.dtype) -> None:
    """Of their sums and counts, too, and of the gradients of these."""
    case = SHAPES[shape]().case
    name = "row_bias" if "row_bias" in case.leaves else "col_bias"
    bias = case.leaves[name].clone()
    bias[::3] = -torch.inf
    found = pair_sets(case)[1][::3].any() if name == "row_bias" else pair_sets(case)[1][:, ::3].any()
    assert found
    bare = replace(case, leaves={key: t for key, t in case.leaves.items() if key != name} | {name: bias})
    leaves = {key: t.to(dtype if key in ("x", "y") else torch.float32) for key, t in bare.leaves.items()}
    exact = {key: t.double() for key, t in leaves.items()}
    truth, d_truth = run(lambda x: dense_outputs(ModifiedCase(bare, ()), x), exact)
    got, d_got = run(lambda x: modified_engine(ModifiedCase(bare, ()), x, "triton"), leaves)
    digits = 2e-2 if dtype == torch.bfloat16 else 1e-4
    for mine, true in zip(got, truth, strict=True):
        assert_close(mine.double(), true, rtol=digits, atol=digits)
    for key, true in d_truth.items():
        assert_close(d_got[key].double(), true, rtol=digits, atol=digits * true.abs().max().item())


def test_a_network_far_from_zero(small: None) -> None:
    """tanh is 1 and -1 where e^2x is infinite or 0, and log sigmoid is linear."""
    case = make_modified(make(40, 50, 8), "PairMLP")
    own = case.modifiers[0].leaves
    own["p"][::2], own["q"][::3], own["b2"] = own["p"][::2] * 1e4, own["q"][::3] * -1e5, torch.tensor(-200.0).double()
    check_modified(case, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_averages(small: None, kind: str, dtype: torch.dtype) -> None:
    """Means of values under the modified softmax; the values' gradient is the kernels', all others the reference's."""
    case = make_modified(make(70, 97, 24, offset=3, positives=0), kind)
    leaves = {name: t.to(dtype if name in ("x", "y") else torch.float32) for name, t in case.leaves().items()}
    leaves["values"] = torch.randn(97, 5)
    slope = torch.randn(70, 5)
    exact = {name: t.double() for name, t in leaves.items()}
    made = []
    for function, given in ((_softmax_mean, exact), (_softmax_mean, leaves), (_average, leaves)):
        given = {name: t.detach().clone().requires_grad_() for name, t in given.items()}
        out = function(case, given)
        found = torch.autograd.grad(
            (out * slope).sum(), list(given.values()), materialize_grads=True, allow_unused=True
        )
        made.append([out.detach(), *found])
    for name, true, eager, got in zip(("out", *leaves), *made, strict=True):
        magnitude = 20.0 if name in ("scale", "0.b2", "0.w2") else 4.0  # sums over all pairs
        assert_as_accurate(got, eager, true, dtype, magnitude=magnitude)


def _average(case: ModifiedCase, leaves: dict[str, Tensor]) -> Tensor:
    points, options = arguments(case.case, leaves)
    options.pop("positives")
    changes = {"modifiers": modifiers_of(case, leaves), "pairs": Pairs(case.case.denominator), "backend": "triton"}
    return engine.pair_average(*points[:2], leaves["values"], points[2], **options, **changes)


def _softmax_mean(case: ModifiedCase, leaves: dict[str, Tensor]) -> Tensor:
    logits = dense_logits(case, leaves).masked_fill(~pair_sets(case.case)[0], -torch.inf)
    return (logits - logits.logsumexp(1, keepdim=True).masked_fill((logits == -torch.inf).all(1)[:, None], 0)).exp().to(
        leaves["values"].dtype
    ) @ leaves["values"]


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_and_counts_are_the_reference_s(kind: str) -> None:
    case = make_modified(make(40, 50, 8, offset=2), kind)
    leaves = {name: t.float() for name, t in case.leaves().items()}
    points, options = arguments(case.case, leaves)
    options["modifiers"] = modifiers_of(case, leaves)
    sets = {"negatives": Pairs(case.case.denominator)}
    found, wanted = (
        (
            *(x for side in engine.pair_extremes(*points, **sets, **options, sides="both", backend=b) for x in side),
            *engine.pair_sum(*points, **sets, **options, return_counts=True, backend=b),
        )
        for b in ("triton", "reference")
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_shift_of_rows_in_both_directions(small: None) -> None:
    """The backward's second sweep is of the transposed matrix, in which the rows' shift is the columns'."""
    problem = modified_problem(SHAPES["columns"]("LabelTable", "Limit"), torch.bfloat16)
    shifted = problem.shifted(torch.randn(len(problem.rows)))
    stats, wanted = (b.pair_stats(shifted, (), True, False) for b in (backend, reference))
    for got, true in zip(stats[:2], wanted[:2], strict=True):
        assert_close(got[:4], true[:4], rtol=1e-4, atol=1e-4)
    d_stats = [torch.rand(len(problem.rows)), None, torch.rand(len(problem.rows))]
    d_cols = [torch.rand(problem.n_cols()), None, torch.rand(problem.n_cols())]
    for needs in (Needs(True, True, True), Needs(True, True, True, True)):
        found = backend.pair_stats_backward(shifted, (), *stats, d_stats, d_cols, needs)
        wanted = reference.pair_stats_backward(
            shifted, (), *reference.pair_stats(shifted, (), True, False), d_stats, d_cols, needs
        )
        for got, true in zip(found, wanted, strict=True):
            peak = true.float().abs().max().item() if true.numel() else 0.0
            assert_close(got.float(), true.float(), rtol=1e-2, atol=1e-2 * peak)


@pytest.mark.parametrize("shape", ["columns", "itself"])
@pytest.mark.parametrize("kind", KINDS)
def test_float16(small: None, kind: str, shape: str) -> None:
    """Stored weights are multiplied by a power of two that gives them the best of its range."""
    check_modified(SHAPES[shape](kind), "triton", torch.float16)


def test_launches_say_what_they_modify() -> None:
    """The same launches as without modifiers; a plain problem's kernels have an empty constant and no data."""
    made = {}
    for kinds in ((), ("LabelTable", "Limit")):
        problem = modified_problem(SHAPES["columns"](*kinds), torch.float32)
        with launch.recording(90) as launches:
            backend.pair_stats(problem, (), True, False)
        made[kinds] = launches
    plain, changed = made.values()
    assert [found.kernel for found in plain] == [found.kernel for found in changed]
    constants = [
        [found.options["MODIFIERS"] for found in those if "MODIFIERS" in found.options] for those in made.values()
    ]
    assert constants == [[()], [("limit", 0, 0, 1, 0, 0, 12, "label_table", 4, 1, 0, 0, 0, 0)]]
    assert any(modifiers.NONE.data is argument for found in plain for argument in found.arguments)
    assert not any(modifiers.NONE.data is argument for found in changed for argument in found.arguments)


def test_a_plain_problem_next_to_a_modified_one() -> None:
    """Nothing of one is left in the other's kernels."""
    check_modified(SHAPES["itself"]("Agreement"), "triton")
    check(make(40, 30, 8), "triton")
