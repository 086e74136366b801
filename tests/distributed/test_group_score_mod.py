# SPDX-License-Identifier: Apache-2.0
"""A function of the logits on ranks: its positions are those among the points of all ranks."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from helpers.dense import arguments, extremes, make, outputs, outputs_and_gradients, pair_sets
from helpers.dense import given as plain_logits
from helpers.modified import ModifiedCase, dense_logits, make_modified, modifiers_of
from helpers.spawn import on_ranks
from test_group_modifiers import TRANSPORTS, WORLDS, bounds, group_of, of_rank, whole_of
from torch import Tensor

from pycl import Pairs, Points
from pycl.engine import LabelTable, pair_average, pair_extremes, pair_stats, pair_sum


def causal(l: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Nothing that comes later, and a slope that depends on the logit."""
    return (2 * torch.tanh(l / 2)).masked_fill(cols > rows, -torch.inf)


def distance(l: Tensor, rows: Tensor, cols: Tensor, bias: Tensor, name: str, steep: Tensor) -> Tensor:
    """A learned number for each distance, up to 20, and a learned slope."""
    assert name == "distance"
    apart = (rows - cols).abs()
    return l + bias[apart.clamp_max(20)] - steep * apart


ARGUMENTS = {"bias": torch.linspace(-1, 1, 21).double().cos(), "steep": torch.tensor(0.05).double()}
FUNCTIONS = {"causal": causal, "distance": distance}


def cases() -> dict[tuple[str, str], ModifiedCase]:
    """Alone, itself, and after modifiers whose labels and numbers lie beside the positions."""
    torch.manual_seed(6)
    made = {
        "columns": make_modified(make(31, 44, 6, offset=None)),
        "itself": make_modified(make(37, None, 6, bias=())),
        "after modifiers": make_modified(make(31, 44, 6, offset=None), "LabelTable", "PairMLP"),
    }
    return {(function, name): with_leaves(whole, function) for name, whole in made.items() for function in FUNCTIONS}


def with_leaves(whole: ModifiedCase, function: str) -> ModifiedCase:
    more = dict(ARGUMENTS) if function == "distance" else {}
    case = whole.case
    return ModifiedCase(case.update(**more, values=torch.randn(len(case.col_ids), 3).double()), whole.modifiers)


def called(function: str, leaves: dict[str, Tensor]) -> tuple[Any, ...]:
    return (leaves["bias"], "distance", leaves["steep"]) if function == "distance" else ()


def engine(function: str, whole: ModifiedCase, leaves: dict[str, Tensor], group: Any) -> list[Tensor]:
    """Statistics of both sides, a sum, means and the hardest pairs."""
    points, options = arguments(whole.case, leaves)
    options |= {"modifiers": modifiers_of(whole, leaves), "group": group}
    options |= {"score_mod": FUNCTIONS[function], "score_mod_args": called(function, leaves)}
    first = Pairs(whole.case.denominator)
    stats = pair_stats(*points, denominator=first, sides="both", **options)
    total = pair_sum(*points, negatives=first, **options)
    hardest = pair_extremes(*points, negatives=first, sides="both", **options)
    del options["positives"]
    rows, cols, scale = points
    means = pair_average(rows, cols, leaves["values"], scale, pairs=first, **options)
    values = [v.masked_fill(i < 0, 0) for side in hardest for v, i in zip(side[:2], side[2:], strict=True)]
    indices = [i for side in hardest for i in side[2:]]
    return [*(t for side in stats for t in side), total, means.sum(1), *values, *indices]


def dense(function: str, whole: ModifiedCase, leaves: dict[str, Tensor]) -> list[Tensor]:
    logits = dense_logits(whole, leaves) if whole.modifiers else plain_logits(whole.case, leaves)
    rows, cols = (torch.arange(size) for size in logits.shape)
    logits = FUNCTIONS[function](logits, rows[:, None], cols[None], *called(function, leaves))
    first, positives = pair_sets(whole.case)
    found = outputs(whole.case, logits)
    inside = logits.masked_fill(~first, -torch.inf)
    some = (inside != -torch.inf).any(1, keepdim=True)
    weights = inside.masked_fill(~some, 0).softmax(1).masked_fill(~some, 0)
    sides = [(logits, first, 1), (logits, positives, -1), (logits.T, first.T, 1), (logits.T, positives.T, -1)]
    indices = [extremes(own.detach(), at, sign)[1] for own, at, sign in sides]
    pairs = zip((own for own, *_ in sides), indices, strict=True)
    chosen = [torch.where(at < 0, 0, own.gather(1, at.clamp_min(0)[:, None])[:, 0]) for own, at in pairs]
    return [*found, (weights @ leaves["values"]).sum(1), *chosen, *indices]


def weights_for(function: str, whole: ModifiedCase) -> list[Tensor]:
    sizes = [len(x) for x in dense(function, whole, whole.leaves())]
    return [torch.linspace(0.5, 1.5 + k, size, dtype=torch.float64) for k, size in enumerate(sizes)]


def on_this_rank(rank: int, world: int) -> dict[Any, Any]:
    found = {}
    for (function, name), whole in cases().items():
        mine = of_rank(whole, rank, world)
        weights = [w[bounds(len(w), rank, world)] for w in weights_for(function, whole)]
        for transport in TRANSPORTS:
            group = group_of(transport)
            run = lambda x, f=function, c=mine, g=group: engine(f, c, x, g)  # noqa: E731
            found[function, name, transport] = outputs_and_gradients(mine.leaves(), run, weights)
    return found


ranks = cache(lambda world: on_ranks(world, on_this_rank))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("function", "name"), cases())
def test_ranks_are_one_process(function: str, name: str, world: int, transport: str) -> None:
    whole = cases()[function, name]
    formula = lambda x: dense(function, whole, x)  # noqa: E731
    expected, gradients = outputs_and_gradients(whole.leaves(), formula, weights_for(function, whole))
    parts = [rank[function, name, transport] for rank in ranks(world)]
    for k, want in enumerate(expected):
        torch.testing.assert_close(torch.cat([found[k] for found, _ in parts]), want, rtol=0, atol=1e-11)
    for leaf, want in gradients.items():
        torch.testing.assert_close(whole_of([of[leaf] for _, of in parts], want), want, rtol=0, atol=1e-10)


def disagreements(rank: int, world: int) -> list[str]:
    """One rank has no score_mod, or brings more numbers to it, or another modifier before it."""
    x, y, labels, said = torch.randn(4, 3), torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), []
    table = [LabelTable(torch.ones(1, 1 + rank), labels, labels)]
    for options in (
        {"score_mod": causal} if rank else {},
        {"score_mod": lambda l, i, j, x: l, "score_mod_args": (torch.ones(1 + rank),)},
        {"score_mod": causal, "modifiers": table},
        {"score_mod": causal},
    ):
        try:
            pair_stats(Points(x), Points(y), denominator=Pairs.ALL, group="world", **options)
            said.append("no error")
        except ValueError as error:
            said.append(str(error))
    return said


def test_other_modifiers_are_refused_and_other_handles_are_not() -> None:
    for *refused, same in on_ranks(2, disagreements):
        assert all("modifiers must be the same on all ranks of the group" in text for text in refused)
        assert same == "no error"
