# SPDX-License-Identifier: Apache-2.0
"""The engine's contract in dense float64, sharing no code with pycl, and the check of a problem against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from helpers.oracle import assert_as_accurate
from pycl import Pairs, Points, pair_cross_entropy, pair_stats, pair_sum

SELF, POS_SAME, POS_OTHER, NEG_SAME, NEG_OTHER = (1 << k for k in range(5))
ALL = 31


@dataclass(frozen=True)
class Case:
    """One problem: leaves in float64 (x, y, scale, row_bias, col_bias; no y: cols=None) and how pairs are classed."""

    leaves: dict[str, Tensor]
    row_ids: Tensor
    row_views: Tensor
    col_ids: Tensor
    col_views: Tensor
    denominator: int = ALL & ~SELF
    positives: int = POS_OTHER
    offset: int | None = 0
    sides: Any = "both"
    normalize: bool = False
    tied: bool = False  # row_bias is col_bias
    map: Any = "softplus"  # of pair_sum,
    positive_weight: Tensor | None = None  # and the factor of its positives

    def update(self, **leaves: Tensor) -> Case:
        return replace(self, leaves=self.leaves | leaves)


def make(
    m: int,
    n: int | None,
    d: int,
    *,
    scale: float | str = 3.0,
    bias: tuple[str, ...] = ("row_bias", "col_bias"),
    weighted: bool = False,
    **rest: Any,
) -> Case:
    """A random problem; ``n=None`` compares the rows with themselves, ``scale="rows"`` has one per row.

    ``weighted`` has weights of the positives, also negative ones, and 0 at every fourth row.
    """
    sizes = {"row_bias": m, "col_bias": m if n is None else n}
    leaves = {"x": torch.randn(m, d).double() / d**0.5}
    if n is not None:
        leaves["y"] = torch.randn(n, d).double() / d**0.5
    leaves["scale"] = torch.rand(m).double() * 4 if scale == "rows" else torch.tensor(scale).double()
    leaves |= {name: torch.randn(sizes[name]).double() for name in bias}
    row_labels = [torch.randint(0, max(1, m // 3), (m,)), torch.randint(0, 3, (m,))]
    col_labels = row_labels if n is None else [torch.randint(0, max(1, m // 3), (n,)), torch.randint(0, 3, (n,))]
    if weighted:
        rest["positive_weight"] = torch.randn(m).double().masked_fill(torch.arange(m) % 4 == 3, 0)
    return Case(leaves, *row_labels, *col_labels, **rest)


def pair_sets(case: Case) -> tuple[Tensor, Tensor]:
    """Which pairs are in the denominator, and which are positives."""
    same_view = case.row_views[:, None] == case.col_views
    cls = torch.where(same_view, NEG_SAME, NEG_OTHER)
    cls = torch.where(case.row_ids[:, None] == case.col_ids, torch.where(same_view, POS_SAME, POS_OTHER), cls)
    if case.offset is not None:
        rows, cols = (torch.arange(len(ids)) for ids in (case.row_ids, case.col_ids))
        cls = torch.where(rows[:, None] + case.offset == cols, SELF, cls)
    return (cls & case.denominator) != 0, (cls & case.positives) != 0


def dense(case: Case, leaves: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Every output of the engine, and the logits they came from."""
    logits = given(case, leaves)
    return outputs(case, logits), logits


def given(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    """The logits of all pairs, of the product, the scale and the biases."""
    x, y = leaves["x"], leaves.get("y", leaves["x"])
    if case.normalize:
        x, y = (z / z.norm(dim=1, keepdim=True).clamp_min(1e-12) for z in (x, y))
    logits = leaves["scale"].reshape(-1, 1) * (x @ y.T)
    if "row_bias" in leaves:
        logits = logits + leaves["row_bias"][:, None]
    if "col_bias" in leaves or case.tied:
        logits = logits + leaves["row_bias" if case.tied else "col_bias"]
    return logits


def outputs(case: Case, logits: Tensor) -> list[Tensor]:
    """Every output of the engine; a pair whose logit is -inf counts nowhere."""
    in_den, in_pos = (chosen & (logits != -torch.inf) for chosen in pair_sets(case))
    found = []
    for dim in (1, 0) if case.sides == "both" else (1,):
        found += [logits.masked_fill(~chosen, -torch.inf).logsumexp(dim) for chosen in (in_den, in_pos)]
        found += [torch.where(in_pos, logits, 0).sum(dim), in_pos.sum(dim).to(logits.dtype)]
    return [*found, sum(terms_of(case, logits)).sum(1)]


def terms_of(case: Case, logits: Tensor) -> list[Tensor]:
    """What every pair adds to a sum as a negative and as a positive."""
    in_den, in_pos = (chosen & (logits != -torch.inf) for chosen in pair_sets(case))
    weight = torch.ones_like(logits[:, 0]) if case.positive_weight is None else case.positive_weight.to(logits.dtype)
    in_pos &= weight[:, None] != 0
    terms = []
    for chosen, l in ((in_den, logits), (in_pos, -logits)):  # of what is infinite and not chosen a slope would be NaN
        terms.append(torch.where(chosen, MAPS[case.map](torch.where(chosen, l, 0)), 0))
    return [terms[0], weight[:, None] * terms[1]]


MAPS = {
    "softplus": lambda l: -logsigmoid(-l),
    "square": torch.square,
    "relu": torch.relu,
    "exp": torch.exp,
    "logit_exp": lambda l: l * l.exp(),
}


def arguments(case: Case, leaves: dict[str, Tensor]) -> tuple[tuple[Points, Points | None, Tensor], dict[str, Any]]:
    """What every function of the engine takes, by position and by name; not the pair set of the denominator."""
    rows = Points(leaves["x"], case.row_ids, case.row_views)
    cols = Points(leaves["y"], case.col_ids, case.col_views) if "y" in leaves else None
    bias = leaves.get("row_bias"), leaves.get("row_bias" if case.tied else "col_bias")
    options: dict[str, Any] = {"row_bias": bias[0], "col_bias": bias[1], "offset": case.offset}
    options |= {"normalize": case.normalize, "positives": Pairs(case.positives)}
    return (rows, cols, leaves["scale"]), options


def engine(case: Case, leaves: dict[str, Tensor], backend: str, group: Any = None) -> list[Tensor]:
    points, options = arguments(case, leaves)
    options |= {"backend": backend, "group": group}
    den = Pairs(case.denominator)
    stats = pair_stats(*points, denominator=den, sides=case.sides, **options)
    total = pair_sum(*points, negatives=den, map=case.map, positive_weight=case.positive_weight, **options)
    return [*(t for side in stats for t in side), total] if case.sides == "both" else [*stats, total]


N_POSITIVES = 3


def reduced(case: Case, leaves: dict[str, Tensor], of: str, reduction: str, backend: str) -> Tensor:
    """``of`` "cross_entropy", of both sides where it can be, or "sum"."""
    points, options = arguments(case, leaves)
    options |= {"reduction": reduction, "backend": backend}
    if of == "sum":
        options |= {"map": case.map, "positive_weight": case.positive_weight}
        return pair_sum(*points, negatives=Pairs(case.denominator), **options)
    square = "y" not in leaves or len(leaves["x"]) == len(leaves["y"])
    options |= {"n_positives": N_POSITIVES, "sides": case.sides if square else "rows"}
    return pair_cross_entropy(*points, denominator=Pairs(case.denominator), **options)


def extremes(logits: Tensor, inside: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """The largest of ``sign`` times the logits of every row, a NaN above all, and of equals the first; else -1."""
    inside = inside & (logits != -torch.inf)
    key = torch.where(inside, sign * logits, -torch.inf)
    value = key.amax(1, keepdim=True)
    index = (inside & ((key == value) | (key.isnan() & value.isnan()))).int().argmax(1, keepdim=True)
    some = inside.any(1)
    return sign * torch.where(some, key.gather(1, index)[:, 0], -torch.inf), torch.where(some, index[:, 0], -1)


def weighted(found: list[Tensor]) -> list[Tensor]:
    """A scalar of each output, every finite entry with a weight of its own."""
    weights = [torch.linspace(0.5, 1.5 + k, len(t), dtype=torch.float64) for k, t in enumerate(found)]
    return [(t.double().masked_fill(t == -torch.inf, 0) * w).sum() for t, w in zip(found, weights, strict=True)]


def run(function: Callable[..., Any], leaves: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    found = function(leaves)
    gradients = torch.autograd.grad(sum(weighted(found)), list(leaves.values()))
    return [t.detach() for t in found], dict(zip(leaves, gradients, strict=True))


def magnitudes(case: Case, leaves: dict[str, Tensor]) -> tuple[float, float, dict[str, float]]:
    """What roundings are relative to: the largest logit, the largest sum, and each gradient without cancellation."""
    leaves = {name: t.detach().requires_grad_() for name, t in leaves.items()}
    found, logits = dense(case, leaves)
    x, y, scale = leaves["x"].abs(), leaves.get("y", leaves["x"]).abs(), leaves["scale"].abs().reshape(-1, 1)
    x_norm, y_norm = (z.norm(dim=1).clamp_min(1e-12) for z in (x, y))
    if case.normalize:
        x, y = x / x_norm[:, None], y / y_norm[:, None]
    size = (scale * (x @ y.T) + sum(t.abs().max() for name, t in leaves.items() if "bias" in name)).max().item()
    parts = [t for t in weighted(found) if t.requires_grad]  # counts do not
    w = sum(torch.autograd.grad(t, logits, retain_graph=True)[0].abs() for t in parts)
    return size, logits.abs().sum(1).max().item(), of_slopes(case, leaves, w, size)


def of_slopes(case: Case, leaves: dict[str, Tensor], w: Tensor, size: float) -> dict[str, float]:
    """The gradients without cancellation, from the logits' absolute gradients and the largest logit."""
    x, y, scale = leaves["x"].abs(), leaves.get("y", leaves["x"]).abs(), leaves["scale"].abs().reshape(-1, 1)
    x_norm, y_norm = (z.norm(dim=1).clamp_min(1e-12) for z in (x, y))
    if case.normalize:
        x, y = x / x_norm[:, None], y / y_norm[:, None]
    by_row, by_col = (w * scale) @ y / (x_norm[:, None] if case.normalize else 1), (w * scale).T @ x
    by_col = by_col / (y_norm[:, None] if case.normalize else 1)
    slope = w * (x @ y.T)
    terms = {"x": by_row if "y" in leaves else by_row + by_col, "y": by_col, "row_bias": w.sum(1), "col_bias": w.sum(0)}
    terms["scale"] = slope.sum() if leaves["scale"].dim() == 0 else slope.sum(1)
    if case.tied:
        terms["row_bias"] = w.sum(0) + w.sum(1)
    steep = max(1.0, size / 5)  # a logit's roundings enter every softmax weight; 5 is the everyday case
    return {name: steep * t.max().item() for name, t in terms.items()}


def check(case: Case, backend: str, dtype: torch.dtype = torch.float32) -> None:
    """All outputs and gradients within the budget; empty sets in the same places."""
    formula, ours = (lambda x: dense(case, x)[0]), (lambda x: engine(case, x, backend))
    compare(case.leaves, formula, ours, lambda x: magnitudes(case, x), dtype)


def compare(
    leaves: dict[str, Tensor],
    formula: Callable[[dict[str, Tensor]], list[Tensor]],
    ours: Callable[[dict[str, Tensor]], list[Tensor]],
    magnitudes_of: Callable[[dict[str, Tensor]], tuple[float, float, dict[str, float]]],
    dtype: torch.dtype,
) -> None:
    """The engine's outputs and their gradients against a formula in float64 and in ``dtype``."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {name: t.to(dtype if name in ("x", "y") else wide) for name, t in leaves.items()}
    exact = {name: t.double() for name, t in leaves.items()}
    truth, d_truth = run(formula, exact)
    eager, d_eager = run(formula, {name: t.to(dtype) for name, t in leaves.items()})
    got, d_got = run(ours, leaves)
    size, total, of_gradients = magnitudes_of(exact)
    for k, (mine, plain, true) in enumerate(zip(got, eager, truth, strict=True)):
        assert mine.dtype == wide
        empty = true == -torch.inf
        assert torch.equal(mine == -torch.inf, empty)
        finite = [t.masked_fill(empty, 0) for t in (mine, plain, true)]
        assert_as_accurate(*finite, dtype, magnitude=total if k % 4 == 2 or k == len(got) - 1 else max(1.0, size))
    for name, true in d_truth.items():
        assert d_got[name].dtype == leaves[name].dtype
        assert_as_accurate(d_got[name], d_eager[name], true, dtype, magnitude=of_gradients[name])


def members(case: Case) -> Tensor:
    """Which pairs are in the denominator, bool [m, n]."""
    return pair_sets(case)[0]


def matrix(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    """The logits of the denominator's pairs, -inf elsewhere."""
    return dense(case, leaves)[1].masked_fill(~members(case), -torch.inf)


def outputs_of(backend: str, case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Every output of the engine and every gradient."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {name: t.to(dtype if name in ("x", "y") else wide) for name, t in case.leaves.items()}
    found, gradients = run(lambda x: engine(case, x, backend), leaves)
    return [*found, *gradients.values()]


def assert_near(found: list[Tensor], wanted: list[Tensor], digits: float) -> None:
    """Empty sets in the same places, everything else within ``digits`` of the largest entry of its tensor."""
    for got, want in zip(found, wanted, strict=True):
        empty = want == -torch.inf
        assert torch.equal(got == -torch.inf, empty)
        got, want = got.masked_fill(empty, 0), want.masked_fill(empty, 0)
        torch.testing.assert_close(got, want, rtol=0, atol=digits * max(1.0, want.abs().max().item()))


def assert_near_products(found: list[Tensor], wanted: list[Tensor], case: Case, digits: float) -> None:
    """What ``outputs_of`` gives where products are off by no more than ``digits`` of those of the absolute values.

    A logit of size s is then off by s digits, a weight of a softmax by as much of itself, and a gradient by both of a
    sum that does not cancel: its weights' digits and its own product's, (1 + s) <= 6 max(1, s / 5) of them together.
    """
    size, total, of_gradients = magnitudes(case, case.leaves)
    n = len(found) - len(of_gradients)
    most = [total if k % 4 == 2 or k == n - 1 else max(1.0, size) for k in range(n)]
    most += [6 * t for t in of_gradients.values()]
    for k, (got, want, magnitude) in enumerate(zip(found, wanted, most, strict=True)):
        assert torch.equal(got == -torch.inf, want == -torch.inf)
        error = (got - want).masked_fill(want == -torch.inf, 0).abs().max().item()
        assert error <= digits * magnitude, f"output {k}: error {error:.3g} > {digits:.3g} of {magnitude:.3g}"


def outputs_and_gradients(leaves: dict[str, Tensor], run: Callable[..., list[Tensor]], weights: list[Tensor]) -> Any:
    """What a rank computes from its leaves, every output with weights of its own."""
    leaves = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    found = run(leaves)
    total = sum((x.masked_fill(x == -torch.inf, 0) * w).sum() for x, w in zip(found, weights, strict=True))
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return [x.detach() for x in found], dict(zip(leaves, gradients, strict=True))
