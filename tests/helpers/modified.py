# SPDX-License-Identifier: Apache-2.0
"""Modifiers of pairs in dense float64, sharing no code with pycl, and the check of a problem with them against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from helpers.dense import Case, arguments, compare, given, of_slopes, outputs, pair_sets, weighted
from helpers.dense import magnitudes as of_plain
from pycl import Pairs, engine
from pycl.core.problem import Problem
from pycl.engine.validation import problem_of


class Modifier(NamedTuple):
    """One modifier: its tensors by the names that ``pycl.engine`` has for them.

    In a symmetric problem whose modifiers are symmetric those of the columns are missing: the rows' serve both.
    """

    kind: str  # the name of the class
    constants: dict[str, Tensor]
    leaves: dict[str, Tensor]  # float64


@dataclass(frozen=True)
class ModifiedCase:
    """A problem, and what changes its logits, in order."""

    case: Case
    modifiers: tuple[Modifier, ...]

    def leaves(self) -> dict[str, Tensor]:
        """Those of the problem, then those of modifier k as ``k.name``."""
        own = [(f"{k}.{name}", t) for k, m in enumerate(self.modifiers) for name, t in m.leaves.items()]
        return self.case.leaves | dict(own)

    def data(self, k: int, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of modifier k, its leaves from ``leaves``, those of the columns written out."""
        modifier = self.modifiers[k]
        found = modifier.constants | {name: leaves[f"{k}.{name}"] for name in modifier.leaves}
        return {col: found[row] for row, col in SIDES.items() if row in found} | found


SIDES = {"row_labels": "col_labels", "row_ids": "col_ids", "p": "q", "rows": "cols", "g": "h"}


def dense_logits(case: ModifiedCase, leaves: dict[str, Tensor]) -> Tensor:
    """[m, n]: the logits of all pairs after the modifiers, -inf where a pair is dropped."""
    logits = given(case.case, leaves)
    for k in range(len(case.modifiers)):
        logits = _ADD[case.modifiers[k].kind](case, k, leaves, logits)
    return logits


def _label_table(case: ModifiedCase, k: int, leaves: dict[str, Tensor], logits: Tensor) -> Tensor:
    x = case.data(k, leaves)
    return logits + _log(x["table"])[x["row_labels"]][:, x["col_labels"]]


def _agreement(case: ModifiedCase, k: int, leaves: dict[str, Tensor], logits: Tensor) -> Tensor:
    x = case.data(k, leaves)
    return logits + _log(x["weights"])[(x["row_ids"][:, :, None] == x["col_ids"][:, None]).sum(0)]


def _pair_mlp(case: ModifiedCase, k: int, leaves: dict[str, Tensor], logits: Tensor) -> Tensor:
    x = case.data(k, leaves)
    hidden = torch.tanh(x["p"][:, None] + x["q"])
    return logits + logsigmoid((hidden * x["w2"]).sum(2) + x["b2"])


def _limit(case: ModifiedCase, k: int, leaves: dict[str, Tensor], logits: Tensor) -> Tensor:
    """Values are compared in float64: in fewer digits other pairs would be dropped."""
    x = case.data(k, leaves)
    above = torch.zeros_like(logits, dtype=torch.bool)
    value = given(case.case, {name: t.detach().double() for name, t in leaves.items()})
    if "g" in x:
        value = x["g"].double() @ x["h"].double().T
    if "rows" in x:
        above |= value > x["rows"][:, None]
    if "cols" in x:
        above |= value > x["cols"]
    return logits.masked_fill(above & ~pair_sets(case.case)[1], -torch.inf)


_ADD: dict[str, Callable[[ModifiedCase, int, dict[str, Tensor], Tensor], Tensor]] = {
    "LabelTable": _label_table,
    "Agreement": _agreement,
    "PairMLP": _pair_mlp,
    "Limit": _limit,
}
KINDS = (*_ADD, "Limit with a guide")


def _log(weights: Tensor) -> Tensor:
    """-inf of 0, with no gradient there."""
    zero = weights == 0
    return torch.where(zero, 1, weights).log().masked_fill(zero, -torch.inf)


def make_modifier(kind: str, case: Case, width: int = 3) -> Modifier:
    """A random one of ``KINDS``, with some weights of 0; ``width``: labels, layers or the guide's features.

    Where the case has no columns of its own both sides share its tensors, so that the matrix stays symmetric.
    """
    m, own = len(case.leaves["x"]), "y" in case.leaves
    n = len(case.leaves["y"]) if own else m
    if kind == "LabelTable":
        table = torch.rand(width, width + 1 if own else width).double() + 0.1
        table[0, -1] = 0
        if not own:
            return Modifier(kind, {"row_labels": torch.randint(0, width, (m,))}, {"table": table * table.T})
        labels = {"row_labels": torch.randint(0, width, (m,)), "col_labels": torch.randint(0, width + 1, (n,))}
        return Modifier(kind, labels, {"table": table})
    if kind == "Agreement":
        weights = torch.rand(width + 1).double() + 0.1
        weights[-1] = 0
        ids = {"row_ids": torch.randint(0, 3, (width, m))} | (
            {"col_ids": torch.randint(0, 3, (width, n))} if own else {}
        )
        return Modifier(kind, ids, {"weights": weights})
    if kind == "PairMLP":
        sides = {"p": torch.randn(m, width).double()} | ({"q": torch.randn(n, width).double()} if own else {})
        return Modifier(kind, {}, sides | {"w2": torch.randn(width).double(), "b2": torch.randn(()).double()})
    value, guide = given(case, case.leaves), {}
    if kind == "Limit with a guide":
        guide = {"g": torch.randn(m, width).double().bfloat16().double()}
        guide |= {"h": torch.randn(n, width).double().bfloat16().double()} if own else {}
        value = guide["g"] @ guide.get("h", guide["g"]).T
    limits = {"rows": _gaps(value), "cols": _gaps(value.T)} if own else {"rows": _gaps(value)}
    return Modifier("Limit", limits | guide, {})


def _gaps(value: Tensor) -> Tensor:
    """Of each row the middle of the widest gap among its larger half: which values are above, no rounding decides."""
    ordered = value.sort(1).values[:, value.shape[1] // 2 :]
    ordered = torch.cat([ordered, ordered[:, -1:] + 0.1], 1)  # of few values none may be above
    low, high = ordered[:, :-1], ordered[:, 1:]
    at = (high - low).argmax(1, keepdim=True)
    return ((low + high) / 2).gather(1, at)[:, 0]


def make_modified(case: Case, *kinds: str, width: int = 3) -> ModifiedCase:
    """The case with modifiers; its points become numbers of bfloat16, so that limits see the same in every dtype."""
    case = case.update(**{name: t.bfloat16().double() for name, t in case.leaves.items() if name in ("x", "y")})
    return ModifiedCase(case, tuple(make_modifier(kind, case, width) for kind in kinds))


def modifiers_of(case: ModifiedCase, leaves: dict[str, Tensor]) -> tuple[Any, ...]:
    """As ``pycl.engine`` takes them."""
    made = []
    for k, modifier in enumerate(case.modifiers):
        x = case.data(k, leaves)
        if modifier.kind == "Limit" and "g" in x:
            x = {name: t for name, t in x.items() if name in ("rows", "cols")} | {"guide": (x["g"], x["h"])}
        made.append(getattr(engine, modifier.kind)(**x))
    return tuple(made)


def modified_engine(case: ModifiedCase, leaves: dict[str, Tensor], backend: str, group: Any = None) -> list[Tensor]:
    """What ``outputs`` of the dense logits gives, by pycl."""
    points, options = arguments(case.case, leaves)
    options |= {"backend": backend, "group": group, "modifiers": modifiers_of(case, leaves)}
    den, sides = Pairs(case.case.denominator), case.case.sides
    stats = engine.pair_stats(*points, denominator=den, sides=sides, **options)
    of_sum = {"map": case.case.map, "positive_weight": case.case.positive_weight}
    total = engine.pair_sum(*points, negatives=den, **of_sum, **options)
    return [*(t for side in stats for t in side), total] if sides == "both" else [*stats, total]


def modified_problem(case: ModifiedCase, dtype: torch.dtype) -> Problem:
    """The problem that crosses to a backend, its points in ``dtype``."""
    leaves = {name: t.to(dtype if name in ("x", "y") else torch.float32) for name, t in case.leaves().items()}
    (rows, cols, scale), options = arguments(case.case, leaves)
    sets = {"denominator": Pairs(case.case.denominator), "positives": options.pop("positives")}
    return problem_of(rows, cols, scale, sets, **options, modifiers=modifiers_of(case, leaves))


def dense_outputs(case: ModifiedCase, leaves: dict[str, Tensor]) -> list[Tensor]:
    return outputs(case.case, dense_logits(case, leaves))


def magnitudes(case: ModifiedCase, leaves: dict[str, Tensor]) -> tuple[float, float, dict[str, float]]:
    """What roundings are relative to: see those of a problem without modifiers."""
    leaves = {name: t.detach().requires_grad_() for name, t in leaves.items()}
    logits = dense_logits(case, leaves)
    kept = logits != -torch.inf
    found = outputs(case.case, logits)
    added = (logits - given(case.case, leaves)).masked_fill(~kept, 0).abs().max().item()
    size = of_plain(case.case, {name: leaves[name] for name in case.case.leaves})[0] + added
    parts = [t for t in weighted(found) if t.requires_grad]
    w = sum(torch.autograd.grad(t, logits, retain_graph=True)[0].abs() for t in parts).masked_fill(~kept, 0)
    most = of_slopes(case.case, leaves, w, size)
    own = [name for name in leaves if name not in case.case.leaves]
    # what a parameter does to a logit has one sign, but for w2, whose slopes are at most b2's
    slopes = torch.autograd.grad(logits, [leaves[name] for name in own], w) if own else ()
    steep = max(1.0, size / 5)
    most |= {name: steep * t.abs().max().item() for name, t in zip(own, slopes, strict=True)}
    most |= {name: most[name.replace("w2", "b2")] for name in own if name.endswith("w2")}
    return size, logits.masked_fill(~kept, 0).abs().sum(1).max().item(), most


def check_modified(case: ModifiedCase, backend: str, dtype: torch.dtype = torch.float32) -> None:
    """All outputs and gradients within the budget; empty sets in the same places."""
    formula, ours = (lambda x: dense_outputs(case, x)), (lambda x: modified_engine(case, x, backend))
    compare(case.leaves(), formula, ours, lambda x: magnitudes(case, x), dtype)
