# SPDX-License-Identifier: Apache-2.0
"""Modifiers on ranks: labels, ids, limits, guides and hidden units travel with their columns."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from helpers.dense import Case, arguments, make, outputs_and_gradients, pair_sets
from helpers.modified import (
    KINDS,
    ModifiedCase,
    Modifier,
    dense_logits,
    dense_outputs,
    make_modified,
    modified_engine,
    modifiers_of,
)
from helpers.spawn import on_ranks
from torch import Tensor

import pycl
from pycl import Pairs, Points
from pycl.backends.registry import installed
from pycl.engine import LabelTable, pair_average, pair_stats

TRANSPORTS = ("gather", "ring")
WORLDS = (2, 3)
OF_ROWS = ("x", "row_bias", "row_labels", "row_ids", "p", "rows", "g")
OF_COLS = ("y", "col_bias", "col_labels", "col_ids", "q", "cols", "h", "col_scale", "values")


def problems() -> dict[str, ModifiedCase]:
    torch.manual_seed(3)
    columns = {kind: make_modified(make(31, 44, 6, offset=None, sides="both"), kind) for kind in KINDS}
    itself = {f"{kind}, itself": make_modified(make(37, None, 6, bias=()), kind) for kind in KINDS}
    return columns | itself | {"two": make_modified(make(31, 44, 6, offset=None), "PairMLP", "Limit with a guide")}


def bounds(n: int, rank: int, world: int) -> slice:
    """Uneven shares."""
    cuts = [0, *(n * k // world + (k % 2) for k in range(1, world)), n]
    return slice(cuts[rank], cuts[rank + 1])


def share(name: str, x: Tensor, case: Case, rank: int, world: int) -> Tensor:
    n_rows, n_cols = len(case.row_ids), len(case.col_ids)
    name = name.rpartition(".")[2]
    if name in ("row_ids", "col_ids") and x.dim() == 2:
        return x[:, bounds(n_rows if name == "row_ids" else n_cols, rank, world)]
    if name in OF_ROWS or (name == "scale" and x.dim()):
        return x[bounds(n_rows, rank, world)]
    return x[bounds(n_cols, rank, world)] if name in OF_COLS else x


def whole_of(parts: list[Tensor], want: Tensor) -> Tensor:
    """A gradient like ``want`` from the ranks' own: of what each rank has a part of, or the sum of what all share."""
    return sum(parts, torch.zeros_like(want)) if parts[0].shape == want.shape else torch.cat(parts)


def group_of(transport: str) -> Any:
    return pycl.distributed.Ring(torch.distributed.group.WORLD) if transport == "ring" else "world"


def of_rank(whole: ModifiedCase, rank: int, world: int) -> ModifiedCase:
    def mine(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: share(name, x, whole.case, rank, world) for name, x in tensors.items()}

    case, at = whole.case, [bounds(len(ids), rank, world) for ids in (whole.case.row_ids, whole.case.col_ids)]
    own = Case(
        mine(case.leaves),
        *(x[at[k // 2]] for k, x in enumerate((case.row_ids, case.row_views, case.col_ids, case.col_views))),
        **{name: getattr(case, name) for name in ("denominator", "positives", "offset", "sides", "normalize", "tied")},
    )
    modifiers = tuple(Modifier(m.kind, mine(m.constants), mine(m.leaves)) for m in whole.modifiers)
    return ModifiedCase(own, modifiers)


def weights_for(whole: ModifiedCase) -> list[Tensor]:
    found = dense_outputs(whole, whole.leaves())
    return [torch.linspace(0.5, 1.5 + k, len(x), dtype=torch.float64) for k, x in enumerate(found)]


def on_this_rank(rank: int, world: int) -> dict[Any, Any]:
    found = {}
    for name, whole in problems().items():
        mine, m = of_rank(whole, rank, world), len(whole.case.row_ids)
        weights = [w[bounds(len(w), rank, world)] for w in weights_for(whole)]
        assert {len(w) for w in weights_for(whole)} <= {m, len(whole.case.col_ids)}
        for transport in TRANSPORTS:
            group = group_of(transport)
            for backend in installed("cpu", torch.float64):
                run = lambda x, c=mine, b=backend, g=group: modified_engine(c, x, b, g)  # noqa: E731
                found[name, transport, backend] = outputs_and_gradients(mine.leaves(), run, weights)
    return found


ranks = cache(lambda world: on_ranks(world, on_this_rank))


@pytest.mark.float64
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", problems())
def test_ranks_are_one_process(name: str, world: int, transport: str, backend: str) -> None:
    whole = problems()[name]
    expected, gradients = outputs_and_gradients(whole.leaves(), lambda x: dense_outputs(whole, x), weights_for(whole))
    parts = [rank[name, transport, backend] for rank in ranks(world)]
    for k, want in enumerate(expected):
        torch.testing.assert_close(torch.cat([found[k] for found, _ in parts]), want, rtol=0, atol=1e-11)
    for leaf, want in gradients.items():
        torch.testing.assert_close(whole_of([of[leaf] for _, of in parts], want), want, rtol=0, atol=1e-10)


def different(rank: int, world: int) -> str:
    x, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    table = torch.ones(2 + rank, 4)
    try:
        pair_stats(Points(x), denominator=Pairs.OTHERS, modifiers=[LabelTable(table, labels, labels)], group="world")
    except ValueError as error:
        return str(error)
    return "no error"


def test_ranks_with_other_modifiers_are_refused() -> None:
    assert all("modifiers" in said for said in on_ranks(2, different))


# ---- means, whose values travel with the columns


def means_of(whole: ModifiedCase, leaves: dict[str, Tensor], group: Any, backend: str) -> Tensor:
    points, options = arguments(whole.case, leaves)
    del options["positives"]
    options |= {"pairs": Pairs(whole.case.denominator), "modifiers": modifiers_of(whole, leaves)}
    rows, cols, scale = points
    return pair_average(rows, cols, leaves["values"], scale, **options, group=group, backend=backend)


def problem_of_means() -> tuple[ModifiedCase, Tensor, Tensor]:
    torch.manual_seed(5)
    whole = make_modified(make(31, 44, 6, offset=None, positives=0), "LabelTable", "PairMLP")
    return whole, torch.randn(44, 3).double(), torch.randn(31, 3).double()


def means_on_this_rank(rank: int, world: int) -> dict[Any, Any]:
    whole, values, slope = problem_of_means()
    mine, rows, cols = of_rank(whole, rank, world), bounds(31, rank, world), bounds(44, rank, world)
    found = {}
    for transport in TRANSPORTS:
        group = group_of(transport)
        for backend in installed("cpu", torch.float64):
            run = lambda x, g=group, b=backend: [means_of(mine, x, g, b)]  # noqa: E731
            leaves = mine.leaves() | {"values": values[cols]}
            found[transport, backend] = outputs_and_gradients(leaves, run, [slope[rows]])
    return found


ranks_of_means = cache(lambda world: on_ranks(world, means_on_this_rank))


@pytest.mark.float64
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world", WORLDS)
def test_means_on_ranks(world: int, transport: str, backend: str) -> None:
    whole, values, slope = problem_of_means()

    def dense(x: dict[str, Tensor]) -> list[Tensor]:
        logits = dense_logits(whole, x).masked_fill(~pair_sets(whole.case)[0], -torch.inf)
        return [logits.softmax(1) @ x["values"]]

    (expected,), gradients = outputs_and_gradients(whole.leaves() | {"values": values}, dense, [slope])
    parts = [rank[transport, backend] for rank in ranks_of_means(world)]
    torch.testing.assert_close(torch.cat([found for (found,), _ in parts]), expected, rtol=0, atol=1e-11)
    for leaf, want in gradients.items():
        torch.testing.assert_close(whole_of([of[leaf] for _, of in parts], want), want, rtol=0, atol=1e-10)
