# SPDX-License-Identifier: Apache-2.0
"""Which pairs a loss compares, found by running it on a few points.

Two sources. The engine's calls of the loss are recorded: their problems say which pairs are in which pair set. And the
gradients of the terms say what the loss does outside of the engine: of linearly independent points the gradient of a
term is a unique combination of points, whose coefficient says how the term depends on the pair.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.backends import reference
from pycl.core.pairs import Pairs
from pycl.core.problem import Problem
from pycl.testing.table import LossRow, make_views
from pycl.tools.site.forces import EXACT, Forces, Inputs

D = 48  # features: more than points, so that these are linearly independent
SEARCHES = ("pair_top", "pair_extremes")
OPERATORS = ("pair_stats", "pair_sum", "pair_average", *SEARCHES)
GENTLE = {"temperature": 1.0, "beta": 2.0, "gamma": 2.0}
SELF, POSITIVE, BOTH, NEGATIVE, IDLE, NONE = "self", "positive", "both", "negative", "idle", ""


class Call(NamedTuple):
    """A call of the engine."""

    operator: str
    problem: Problem
    both_sides: bool

    def sentence(self) -> str:
        """The call in words: operator, sets and sizes."""
        p = self.problem
        sets = {"pairs": p.pairs, "positives": p.positives}
        named = ", ".join(f"{name} {set_name(pairs)}" for name, pairs in sets.items() if pairs)
        sides = ", both sides" if self.both_sides else ""
        return f"`{self.operator}` of {len(p.rows)} anchors and {p.n_cols()} candidates: {named}{sides}"


class Picture(NamedTuple):
    """What every anchor does with every candidate: one of the words above."""

    anchors: list[str]
    candidates: list[str]
    cells: dict[tuple[str, str], str]
    calls: list[str]
    named: dict[str, str]  # for each argument a sentence about the name of a point
    form: str  # the options and the optional inputs of the row
    labels: list[int] | None


def set_name(pairs: int) -> str:
    """A union of pair classes, by its own name where it has one."""
    if (known := Pairs(pairs)) in Pairs.__members__.values():
        return str(next(name for name, value in Pairs.__members__.items() if value == known))
    if Pairs.SELF not in known:
        return " | ".join(name for name, x in Pairs.__members__.items() if x in known and x.bit_count() == 1)
    missing = Pairs.ALL & ~known
    return f"ALL & ~{set_name(int(missing))}"


def picture_of(row: LossRow) -> Picture | None:
    """The pairs of a row of the table; None of a loss that is not made of pairs of points."""
    inputs, labels = inputs_of(row)
    where = {"backend": "reference"} if row.engine else {}
    loss = partial(row.function, **options_of(row), **where, **({"reduction": "none"} if row.reducible else {}))
    with recorded() as calls:
        loss(**inputs.given)
    cells = _of_calls(calls, inputs)
    if calls and not cells:
        return None  # pairs of features
    forces = Forces(loss, inputs)
    first = next(iter(inputs.points.values()), ("", 0))[0]  # without a call of the engine the first argument's
    anchors = [x for x, (of, _) in inputs.points.items() if (any(x == a for a, _ in cells) if cells else of == first)]
    _completed(cells, anchors, forces)
    seen = {a for (a, _), state in cells.items() if state not in (SELF, IDLE)}
    if not seen:
        return None
    arguments = {inputs.points[c][0] for _, c in cells}
    candidates = [name for name, (argument, _) in inputs.points.items() if argument in arguments]
    sentences = list(dict.fromkeys(call.sentence() for call in calls))
    shown = [a for a in anchors if a in seen]
    named = meanings({*shown, *candidates}, inputs)
    return Picture(shown, candidates, cells, sentences, named, form_of(row, inputs), labels)


def meanings(names: set[str], inputs: Inputs) -> dict[str, str]:
    """A sentence for each argument whose points are drawn."""
    first = {argument: name for name, (argument, _) in reversed(inputs.points.items()) if name in names}
    return {
        argument: f"`{name}` is {'instance 1 in view a' if argument == 'views' else f'the first of `{argument}`'}"
        for argument, name in reversed(first.items())
    }


def form_of(row: LossRow, inputs: Inputs) -> str:
    """What makes the row another form than the default: optional inputs with their shapes, and options."""
    parameters = inspect.signature(row.function).parameters
    optional = {name: x for name, x in inputs.given.items() if parameters[name].default is None}
    shapes = [
        f"{name} [{', '.join(map(str, x.shape[:-1]))}, d]" if isinstance(x, Tensor) else name
        for name, x in optional.items()
    ]
    changed = [f"{name}={x!r}" for name, x in row.options.items() if x != parameters[name].default]
    return ", ".join([*shapes, *changed]) or "default"


def options_of(row: LossRow) -> dict[str, Any]:
    """The scalars and options of a row, where no pair's weight is lost in rounding."""
    ours = row.scalars.keys() | ({"gamma"} & inspect.signature(row.function).parameters.keys())
    return {**row.scalars, **{name: GENTLE[name] for name in GENTLE if name in ours}, **row.options}


def inputs_of(row: LossRow) -> tuple[Inputs, list[int] | None]:
    """A few points with the names a1, a2, ... of view a, or q1, q2, ... of a query; and their labels, if any."""
    n_views, n = (3, 3) if row.takes(3) and not row.function.__name__.startswith("sup_con") else (2, 4)
    labels = torch.arange(n) // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = row.inputs_of(0.25 * make_views(n_views, n, D), labels)
    by_position, by_name = row.arguments_of(*leaves)
    given = dict(zip(inspect.signature(row.function).parameters, by_position, strict=False)) | by_name
    points: dict[str, tuple[str, int]] = {}
    for argument, x in given.items():
        if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1 and x.shape[-1] == D:
            taken = {name[0] for name in points}
            letter = next(letter for letter in argument.split("_")[-1] if letter not in taken)
            points |= {name: (argument, i) for i, name in enumerate(_names(argument, letter, x))}
    with_labels = any(isinstance(x, Tensor) and not x.is_floating_point() for x in leaves)
    return Inputs(given, points), labels.tolist() if with_labels else None


def _names(argument: str, letter: str, x: Tensor) -> list[str]:
    if argument == "views":
        return [f"{view}{i + 1}" for view in "abcdefgh"[: x.shape[0]] for i in range(x.shape[1])]
    if x.dim() == 3:  # each instance's own
        return [f"{letter}{i + 1}{k}" for i in range(x.shape[0]) for k in "abcdefgh"[: x.shape[1]]]
    return [f"{letter}{i + 1}" for i in range(len(x))]


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls that losses make of the reference backend meanwhile."""
    calls: list[Call] = []

    def recorder(operator: str) -> Any:
        function = getattr(reference, operator)

        def record(problem: Problem, *args: Any) -> Any:
            both = operator != "pair_sum" and any(x is True for x in args[:2])
            calls.append(Call(operator, problem, both))
            return function(problem, *args)

        return record

    with mock.patch.multiple(reference, **{operator: recorder(operator) for operator in OPERATORS}):
        yield calls


def _of_calls(calls: list[Call], inputs: Inputs) -> dict[tuple[str, str], str]:
    """The state of every pair that a call looks at."""
    cells: dict[tuple[str, str], str] = {}
    for call in calls:
        problem = call.problem.as_rectangular()
        rows, cols = _recognised(problem.rows, inputs), _recognised(problem.cols, inputs)
        looked_at, positive = _members(problem, problem.pairs), _members(problem, problem.positives)
        only_positives = Pairs(problem.pairs) in Pairs.POSITIVE  # of two calls, one for each set
        for i, a in enumerate(rows):
            for j, c in enumerate(cols):
                state = _state(bool(looked_at[i, j]), bool(positive[i, j]), only_positives)
                if state and call.operator in SEARCHES:
                    state = IDLE  # until a gradient says that it was found
                for pair in [(a, c), (c, a)] if call.both_sides else [(a, c)]:
                    cells[pair] = SELF if a == c else _joined(cells.get(pair, NONE), state)
    return {pair: state for pair, state in cells.items() if "" not in pair}


def _members(problem: Problem, pairs: int) -> Tensor:
    """Which pairs are in a set, as the engine says: what is not has a logit of -inf."""
    return reference.pair_logits(problem._replace(pairs=pairs, modifiers=())).isfinite()


def _recognised(z: Tensor | None, inputs: Inputs) -> list[str]:
    """The names of points, by their directions; "" for what is none of the inputs."""
    assert z is not None
    if z.shape[1] != D:
        return [""] * len(z)
    cosines = F.normalize(z.detach(), dim=1) @ F.normalize(inputs.stacked(), dim=1).T
    best, at = cosines.max(1)
    names = list(inputs.points)
    return [names[i] if x > 1 - EXACT else "" for x, i in zip(best.tolist(), at.tolist(), strict=True)]


def _state(looked_at: bool, positive: bool, only_positives: bool) -> str:
    if looked_at and only_positives:
        return POSITIVE
    return (BOTH if looked_at else POSITIVE) if positive else (NEGATIVE if looked_at else NONE)


def _joined(one: str, other: str) -> str:
    states = {one, other} - {NONE, IDLE}
    return BOTH if len(states) > 1 else states.pop() if states else one or other


def _completed(cells: dict[tuple[str, str], str], anchors: list[str], forces: Forces) -> None:
    """With what the loss does beside the engine, and which positives are in the denominator after all."""
    for a in anchors:
        if not (of_anchor := forces.of(a)):
            continue  # a constant
        for c in forces.inputs.points:
            force, state = of_anchor.get(c, 0.0), cells.get((a, c), NONE)
            if state in (NONE, IDLE) and a != c and force:
                cells[a, c] = POSITIVE if force < 0 else NEGATIVE
            elif state == NEGATIVE and not force:
                cells[a, c] = IDLE
        negatives = [c for c in of_anchor if cells.get((a, c)) == NEGATIVE]
        for c in forces.inputs.points:
            if cells.get((a, c)) in (POSITIVE, BOTH):
                cells[a, c] = BOTH if forces.weakens(a, c, negatives) else POSITIVE
