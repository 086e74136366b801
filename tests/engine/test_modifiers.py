# SPDX-License-Identifier: Apache-2.0
"""Weights and limits of pairs: every modifier, alone and with another, in every reduction, against dense float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dense import ALL, NEG_SAME, POS_OTHER, POS_SAME, SELF, Case, make, pair_sets
from helpers.modified import KINDS, check_modified, dense_logits, make_modified, modifiers_of
from helpers.oracle import FLOOR
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pycl import Pairs, Points
from pycl.backends import reference_modifiers
from pycl.backends.registry import why_not
from pycl.core.problem import Needs
from pycl.engine import (
    Agreement,
    LabelTable,
    PairMLP,
    pair_average,
    pair_cross_entropy,
    pair_extremes,
    pair_stats,
    pair_sum,
)
from pycl.engine.validation import problem_of

KIND = pytest.mark.parametrize("kind", KINDS)
CASES: dict[str, Callable[..., Case]] = {
    "columns": partial(make, 67, 131, 19, offset=3),
    "itself": partial(make, 150, None, 24, bias=(), normalize=True, positives=POS_SAME | POS_OTHER),
    "itself_by_rows": partial(make, 150, None, 24, bias=(), sides="rows", positives=POS_SAME | POS_OTHER),
    "one_pair": partial(make, 1, 1, 1, offset=None, denominator=ALL),
    "own_scales": partial(make, 40, 33, 130, scale="rows", sides="rows", positives=SELF | POS_SAME, map="relu"),
    "steep": partial(make, 70, 129, 5, scale=60.0, denominator=NEG_SAME, positives=POS_OTHER),
}


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("case", CASES)
@KIND
def test_against_dense(kind: str, case: str, dtype: torch.dtype, backend: str) -> None:
    check_modified(make_modified(CASES[case](), kind), backend, dtype)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("case", ["columns", "itself"])
@KIND
def test_instruction_sets(kind: str, case: str, dtype: torch.dtype, isa: str) -> None:
    check_modified(make_modified(CASES[case](), kind, width=5), "cpu", dtype)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@KIND
def test_itself_in_several_blocks(kind: str, dtype: torch.dtype, isa: str) -> None:
    """Off the diagonal a pair is in one tile for both of its roles."""
    problem = make(450, None, 9, bias=(), sides="rows", positives=POS_SAME | POS_OTHER)
    check_modified(make_modified(problem, kind), "cpu", dtype)


@pytest.mark.parametrize("case", ["columns", "itself"])
@pytest.mark.parametrize("kinds", itertools.combinations_with_replacement(KINDS, 2), ids=" and ".join)
def test_two(kinds: tuple[str, str], case: str, backend: str) -> None:
    check_modified(make_modified(CASES[case](), *kinds), backend)


@pytest.mark.float64
@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 70), n=st.integers(1, 200), width=st.integers(1, 20), data=st.data())
def test_any_shape(m: int, n: int, width: int, data: Any, backend: str) -> None:
    torch.manual_seed(m * 1000 + n)
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    check_modified(make_modified(make(m, n, 7, offset=None), *kinds, width=width), backend, torch.float64)


def leaves_of(seed: int = 0, m: int = 5, n: int = 7, h: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    shapes = {
        "x": (m, 4),
        "y": (n, 4),
        "table": (2, 3),
        "weights": (3,),
        "p": (m, h),
        "q": (n, h),
        "w2": (h,),
        "b2": (),
    }
    leaves = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    leaves |= {name: leaves[name].exp() for name in ("table", "weights")}
    return {name: x.requires_grad_() for name, x in leaves.items()}


LABELS = {"row_labels": torch.tensor([0, 1, 1, 0, 1]), "col_labels": torch.tensor([2, 0, 1, 1, 0, 2, 2])}
IDS = torch.tensor([[0, 1, 1, 0, 2], [1, 1, 0, 0, 1]]), torch.tensor([[0, 0, 1, 2, 1, 1, 0], [0, 1, 1, 1, 0, 0, 1]])


def all_modifiers(x: dict[str, Tensor]) -> list[Any]:
    network = PairMLP(x["p"], x["q"], x["w2"], x["b2"])
    return [LabelTable(x["table"], **LABELS), Agreement(*IDS, x["weights"]), network]


@pytest.mark.float64
def test_gradcheck_of_every_parameter(backend: str) -> None:
    leaves = leaves_of()

    def all_of_it(*values: Tensor) -> tuple[Tensor, ...]:
        x = dict(zip(leaves, values, strict=True))
        points = Points(x["x"], LABELS["row_labels"]), Points(x["y"], LABELS["col_labels"])
        options: dict[str, Any] = {"offset": None, "modifiers": all_modifiers(x), "backend": backend}
        rows, cols = pair_stats(
            *points, denominator=Pairs.ALL, positives=Pairs.POSITIVE, sides="both", **options
        )  # a label that no column has leaves rows without a positive: no gradient, no NaN
        of_sum = {"reduction": "mean", "positive_weight": torch.arange(5.0)}
        total = pair_sum(*points, negatives=Pairs.NEGATIVE, positives=Pairs.POSITIVE, **of_sum, **options)
        means = pair_average(points[0], points[1], x["y"], **options)
        pos_lse = rows.pos_lse.masked_fill(rows.pos_lse == -torch.inf, 0)
        return rows.lse, pos_lse, rows.pos_sum, cols.lse, total, means

    assert torch.autograd.gradcheck(all_of_it, tuple(leaves.values()))


@pytest.mark.float64
@KIND
def test_means(kind: str, backend: str) -> None:
    """Limits compare with the logits themselves, not with those that the log-sum-exps were subtracted from."""
    case = make_modified(make(45, 70, 11, positives=0), kind)
    values = torch.randn(70, 6, dtype=torch.float64)
    slope = torch.randn(45, 6, dtype=torch.float64)

    def dense(x: dict[str, Tensor]) -> Tensor:
        logits = dense_logits(case, x).masked_fill(~pair_sets(case.case)[0], -torch.inf)
        some = (logits != -torch.inf).any(1, keepdim=True)
        return logits.masked_fill(~some, 0).softmax(1).masked_fill(~some, 0) @ x["values"]

    def ours(x: dict[str, Tensor]) -> Tensor:
        rows = Points(x["x"], case.case.row_ids, case.case.row_views)
        cols = Points(x["y"], case.case.col_ids, case.case.col_views)
        biases: dict[str, Any] = {name: x[name] for name in ("row_bias", "col_bias")}
        options = biases | {"pairs": Pairs(case.case.denominator), "modifiers": modifiers_of(case, x)}
        return pair_average(rows, cols, x["values"], x["scale"], backend=backend, **options)

    leaves = {name: x.clone().requires_grad_() for name, x in (case.leaves() | {"values": values}).items()}
    found, wanted = ours(leaves), dense(leaves)
    assert_close(found, wanted, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((out * slope).sum(), list(leaves.values())) for out in (found, wanted)]
    for got, want in zip(*gradients, strict=True):
        assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.float64
@pytest.mark.parametrize("case", ["columns", "itself"])
@KIND
def test_extremes(kind: str, case: str, backend: str) -> None:
    problem = make_modified(CASES[case](), kind)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves().items()}
    own = problem.case
    rows, cols = Points(leaves["x"], own.row_ids, own.row_views), None
    if "y" in leaves:
        cols = Points(leaves["y"], own.col_ids, own.col_views)
    sets = {"negatives": Pairs(own.denominator), "positives": Pairs(own.positives)}
    options: dict[str, Any] = {name: leaves.get(name) for name in ("row_bias", "col_bias")}
    options |= {"normalize": own.normalize, "offset": own.offset, "modifiers": modifiers_of(problem, leaves)}
    of_rows, of_cols = pair_extremes(rows, cols, leaves["scale"], **sets, **options, sides="both", backend=backend)
    logits = dense_logits(problem, leaves)
    in_first, in_pos = (chosen & (logits != -torch.inf) for chosen in pair_sets(own))
    negatives, positives = logits.masked_fill(~in_first, -torch.inf), logits.masked_fill(~in_pos, torch.inf)
    for value, index, best, some in (
        (of_rows.negative, of_rows.negative_index, negatives.max(1), in_first.any(1)),
        (of_rows.positive, of_rows.positive_index, positives.min(1), in_pos.any(1)),
        (of_cols.negative, of_cols.negative_index, negatives.max(0), in_first.any(0)),
        (of_cols.positive, of_cols.positive_index, positives.min(0), in_pos.any(0)),
    ):
        assert_close(value, best.values, rtol=0, atol=1e-12)
        assert torch.equal(index[some], best.indices[some])
        gradients = [
            torch.autograd.grad(x[some].sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
            for x in (value, best.values)
        ]
        for got, want in zip(*gradients, strict=True):
            assert (got is None or not got.any()) if want is None else torch.allclose(got, want, rtol=0, atol=1e-12)


def drop_all(kept: int | None) -> list[Any]:
    """Modifiers of 5 x 7 pairs that drop all of them but that of point 0 and candidate ``kept``."""
    table = torch.zeros(2, 2, requires_grad=True)
    if kept is not None:
        table = torch.tensor([[0.0, 0.0], [0.0, 3.0]], requires_grad=True)
    rows, cols = torch.zeros(5, dtype=torch.int64), torch.zeros(7, dtype=torch.int64)
    rows[0] = 1
    cols[kept or 0] = 1
    return [LabelTable(table, rows, cols)]


@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["bounded", "steep"])
def test_nothing_left(scale: float, backend: str) -> None:
    x, y = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    modifiers = drop_all(None)
    options: dict[str, Any] = {"offset": None, "modifiers": modifiers, "backend": backend}
    sets = {"denominator": Pairs.ALL, "positives": Pairs.ALL}
    stats = pair_stats(Points(x), Points(y), scale, **sets, **options)
    assert torch.equal(torch.stack(stats), torch.tensor([-torch.inf, -torch.inf, 0, 0])[:, None].expand(4, 5))
    loss = pair_sum(Points(x), Points(y), scale, negatives=Pairs.ALL, positives=Pairs.ALL, **options)
    means = pair_average(Points(x), Points(y), y, scale, **options)
    finite = [stats.lse.masked_fill(stats.lse == -torch.inf, 0), stats.pos_sum, loss]
    assert torch.equal(means, torch.zeros(5, 4))
    total = torch.stack(finite).sum() + means.sum()
    assert total == 0
    assert all(not g.any() for g in torch.autograd.grad(total, [x, y, modifiers[0].table]))
    extremes = pair_extremes(Points(x), Points(y), scale, negatives=Pairs.ALL, positives=Pairs.ALL, **options)
    assert torch.equal(extremes.negative_index, torch.full((5,), -1))
    assert torch.equal(extremes.positive, torch.full((5,), torch.inf))


def test_one_pair_left(backend: str) -> None:
    x, y = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    sets = {"denominator": Pairs.ALL, "positives": Pairs.ALL}
    options: dict[str, Any] = {"offset": None, "modifiers": drop_all(6), "backend": backend}
    stats = pair_stats(Points(x), Points(y), **sets, **options)
    logit = (x[0] * y[6]).sum() + 3 * torch.tensor(1.0).log() + torch.tensor(3.0).log()
    assert_close(stats.lse[0], logit)
    assert torch.equal(stats.pos_count, torch.tensor([1.0, 0, 0, 0, 0]))
    assert_close(stats.pos_sum[0], logit)
    loss = pair_cross_entropy(Points(x), Points(y), **sets, reduction="sum", **options)
    assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(loss, [x, y]))


@pytest.mark.parametrize("spread", [1.0, 30.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_networks_of_any_size(dtype: torch.dtype, spread: float, backend: str) -> None:
    """Hidden units far from 0, and sums of two large numbers that are small."""
    x, y = torch.randn(50, 4, dtype=dtype), torch.randn(64, 4, dtype=dtype)
    given = [torch.randn(50, 5, dtype=dtype) * spread, torch.randn(64, 5, dtype=dtype) * spread]
    given[1][0] = -given[0][0]
    given += [torch.randn(5, dtype=dtype), torch.randn((), dtype=dtype)]
    leaves = [t.requires_grad_() for t in given]
    p, q, w2, b2 = (t.detach().double().requires_grad_() for t in leaves)
    added = torch.nn.functional.logsigmoid(torch.tanh(p[:, None] + q) @ w2 + b2)
    wanted = (x.double() @ y.double().T + added).logsumexp(1)
    options: dict[str, Any] = {"offset": None, "backend": backend, "modifiers": [PairMLP(*leaves)]}
    found = pair_stats(Points(x), Points(y), denominator=Pairs.ALL, **options).lse
    digits = 2e-6 if dtype == torch.float32 else 1e-13
    assert_close(found.double(), wanted, rtol=digits, atol=digits * 5)
    slope = torch.randn(50, dtype=torch.float64)
    gradients = torch.autograd.grad((found.double() * slope).sum(), leaves)
    truth = torch.autograd.grad((wanted * slope).sum(), [p, q, w2, b2])
    for got, want in zip(gradients, truth, strict=True):
        # the sum p + q has a rounding of its own
        assert_close(got.double(), want, rtol=0, atol=digits * max(1.0, spread / 10) * max(1, want.abs().max().item()))


def test_a_network_keeps_a_nan(backend: str) -> None:
    p, q = torch.zeros(3, 2), torch.zeros(4, 2)
    p[1, 0] = torch.nan
    modifiers = [PairMLP(p, q, torch.ones(2), torch.tensor(0.0))]
    options: dict[str, Any] = {"denominator": Pairs.ALL, "offset": None, "modifiers": modifiers, "backend": backend}
    lse = pair_stats(Points(torch.zeros(3, 2)), Points(torch.zeros(4, 2)), **options).lse
    assert torch.equal(lse.isnan(), torch.tensor([False, True, False]))


@pytest.mark.parametrize("base", [0, 2**40, -(2**62)])
def test_any_integers_agree(base: int, backend: str) -> None:
    """Also those that are far apart, and that are equal in their last 32 bits."""
    ids = torch.tensor([0, 1, 2, 2**33, 2**33 + 1]) + base
    x = torch.zeros(5, 2)
    weights = torch.tensor([1.0, 0.0])
    options: dict[str, Any] = {"modifiers": [Agreement(ids[None], ids[None], weights)], "backend": backend}
    stats = pair_stats(Points(x), Points(x), denominator=Pairs.ALL, offset=None, **options)
    assert_close(stats.lse, torch.full((5,), 4.0).log())


def test_factors_of_columns(backend: str) -> None:
    x, y = torch.randn(9, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    factor = torch.rand(7, requires_grad=True)
    wanted = (2 * x / x.norm(dim=1, keepdim=True) @ (y / y.norm(dim=1, keepdim=True)).T * factor).logsumexp(1)
    options: dict[str, Any] = {"offset": None, "normalize": True, "col_scale": factor, "backend": backend}
    found = pair_stats(Points(x), Points(y), 2.0, denominator=Pairs.ALL, **options).lse
    assert_close(found, wanted)
    gradients = [torch.autograd.grad((lse**2).sum(), [x, y, factor]) for lse in (found, wanted)]
    for got, want in zip(*gradients, strict=True):
        assert_close(got, want)
    itself = pair_stats(Points(x), denominator=Pairs.OTHERS, col_scale=torch.arange(9.0), backend=backend).lse
    logits = (x @ x.T * torch.arange(9.0)).masked_fill(torch.eye(9, dtype=torch.bool), -torch.inf)
    assert_close(itself, logits.logsumexp(1))


@pytest.mark.float64
def test_means_come_with_their_gradients(backend: str) -> None:
    """The value of a mean is that of the terms, whichever way its gradients come."""
    case = make_modified(make(33, 47, 9), "LabelTable", "PairMLP")
    found = []
    for reduction in ("mean", "none"):
        leaves = {name: x.clone().requires_grad_() for name, x in case.leaves().items()}
        rows, cols = (Points(leaves[z], torch.arange(len(leaves[z]))) for z in "xy")
        options: dict[str, Any] = {"modifiers": modifiers_of(case, leaves), "reduction": reduction, "offset": None}
        options["backend"] = backend
        loss = pair_cross_entropy(rows, cols, denominator=Pairs.ALL, positives=Pairs.POSITIVE, **options).mean()
        loss = loss + pair_sum(rows, cols, negatives=Pairs.NEGATIVE, **options).mean()
        used = [x for name, x in leaves.items() if name not in ("scale", "row_bias", "col_bias")]
        found.append([loss.detach(), *torch.autograd.grad(loss, used)])
    for got, want in zip(*found, strict=True):
        assert_close(got, want, rtol=0, atol=1e-13)


@KIND
def test_opcheck(kind: str, backend: str) -> None:
    case = make_modified(make(9, 7, 5, bias=()), kind)
    leaves = {name: x.float() for name, x in case.leaves().items()}
    sets = {"denominator": Pairs.ALL, "positives": Pairs.POSITIVE}
    ids = torch.arange(9), torch.arange(7)
    points = Points(leaves["x"], ids[0]), Points(leaves["y"], ids[1])
    p = problem_of(*points, leaves["scale"], sets, None, None, None, False, modifiers=modifiers_of(case, leaves))
    ops, needs = torch.ops.pycl, Needs(True, True, False, True)
    stats = ops.pair_stats(*p, (), True, False, backend)
    torch.library.opcheck(ops.pair_stats.default, (*p, (1.0, 2.0), True, True, backend))
    d_stats = [torch.randn(9), None, torch.randn(9), torch.randn(7), None, None]
    torch.library.opcheck(ops.pair_stats_backward.default, (*p, (), *stats, *d_stats, needs, backend))
    given = "exp", torch.rand(9), stats[2], torch.randn(9)
    torch.library.opcheck(ops.pair_sum_backward.default, (*p, *given, needs, backend))
    torch.library.opcheck(ops.pair_extremes.default, (*p, True, backend))


@pytest.mark.float64
def test_compile_and_vmap(backend: str) -> None:
    leaves = leaves_of()

    def loss(*values: Tensor) -> Tensor:
        x = dict(zip(leaves, values, strict=True))
        options: dict[str, Any] = {"offset": None, "modifiers": all_modifiers(x), "backend": backend}
        return pair_stats(Points(x["x"]), Points(x["y"]), denominator=Pairs.ALL, **options).lse.sum()

    values = tuple(x.detach() for x in leaves.values())
    wanted = torch.autograd.grad(loss(*leaves.values()), list(leaves.values()))
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, want in zip(torch.autograd.grad(compiled(*leaves.values()), list(leaves.values())), wanted, strict=True):
        assert_close(got, want)
    gradient = torch.func.grad(loss, argnums=tuple(range(len(values))))
    for got, want in zip(gradient(*values), wanted, strict=True):
        assert_close(got, want)
    batched = torch.func.vmap(gradient)(*(torch.stack([x, x + 0.5]) for x in values))
    shifted = gradient(*(x + 0.5 for x in values))
    for got, want, other in zip(batched, wanted, shifted, strict=True):
        assert_close(got, torch.stack([want, other]))


PEAK = """
import torch
from pycl import Pairs, Points
from pycl.engine import *

d = 32
options = {{"offset": None, "backend": "cpu"}}


def peak_of(n):
    x, y, p, q = (torch.randn(n, k, requires_grad=True) for k in (d, d, 16, 16))
    points, labels, ids = (Points(x), Points(y)), torch.arange(n) % 7, torch.arange(2 * n).view(2, n) % 5
    w2, b2 = torch.randn(16, requires_grad=True), torch.zeros((), requires_grad=True)
    modifiers = {{
        "table": lambda: [LabelTable(torch.rand(7, 7, requires_grad=True), labels, labels)],
        "agreement": lambda: [Agreement(ids, ids, torch.rand(3, requires_grad=True))],
        "network": lambda: [PairMLP(p, q, w2, b2)],
        "guide": lambda: [Limit(torch.zeros(n), guide=(x.detach(), y.detach()))],
    }}
    calls = {{
        "slopes": lambda: pair_stats(*points, denominator=Pairs.ALL, slopes=(1.0, 2.0), **options).lse,
        "sum": lambda: pair_sum(*points, negatives=Pairs.ALL, map="exp", return_counts=True, **options)[0],
        "average": lambda: pair_average(*points, y, **options),
        "extremes": lambda: pair_extremes(*points, negatives=Pairs.ALL, positives=Pairs.NONE, **options).negative,
    }}
    if "{kind}" in modifiers:
        pair_stats(*points, denominator=Pairs.ALL, modifiers=modifiers["{kind}"](), **options).lse.sum().backward()
    else:
        calls["{kind}"]().sum().backward()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


small = peak_of(256)
print(peak_of(16384) - small)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak of memory")
@pytest.mark.parametrize("kind", ["table", "agreement", "network", "guide", "slopes", "sum", "average", "extremes"])
def test_no_matrix_is_stored(kind: str) -> None:
    if reason := why_not("cpu", "cpu"):
        pytest.skip(reason)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "2"}
    environment["PYCL_WORKSPACE"] = "0"
    code = PEAK.format(kind=kind)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240, env=environment
    )
    matrix = 16384**2 * 4
    assert 0 < int(run.stdout) < matrix / 10


@pytest.mark.parametrize("n", [100, 16384, 1 << 22])
def test_the_reference_takes_a_strip_at_a_time(n: int) -> None:
    x = torch.zeros(1, 2).expand(n, 2)
    h = torch.zeros(1, 16).expand(n, 16)
    network = PairMLP(h, h, torch.zeros(16), torch.tensor(0.0))
    sets = {"denominator": Pairs.ALL, "positives": Pairs.NONE}
    problem = problem_of(Points(x), Points(x), 1.0, sets, None, None, None, False, modifiers=[network])
    rows = reference_modifiers.strip_rows(problem, 512)
    assert 1 <= rows <= 512
    assert rows == 1 or rows * n * 16 <= reference_modifiers.ELEMENTS
