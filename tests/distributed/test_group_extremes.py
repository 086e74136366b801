# SPDX-License-Identifier: Apache-2.0
"""The hardest pairs over the candidates of all ranks: positions in their order, ties across ranks, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers.dense import Case, arguments, extremes, make, outputs_and_gradients, pair_sets
from helpers.modified import ModifiedCase, dense_logits, make_modified, modifiers_of
from helpers.spawn import on_ranks
from test_group_modifiers import TRANSPORTS, WORLDS, bounds, group_of, of_rank, problems, whole_of
from torch import Tensor

from pycl import Pairs
from pycl.backends.registry import installed
from pycl.engine import PairExtremes, pair_extremes

SPLITS = {2: (9, 4), 3: (3, 1, 9)}  # of 13 points, for exact answers


def hardest(
    whole: ModifiedCase, leaves: dict[str, Tensor], group: Any, backend: str
) -> tuple[PairExtremes, PairExtremes]:
    points, options = arguments(whole.case, leaves)
    options |= {"modifiers": modifiers_of(whole, leaves), "col_scale": leaves.get("col_scale")}
    options |= {"group": group, "backend": backend}
    return pair_extremes(*points, negatives=Pairs(whole.case.denominator), sides="both", **options)


def finite(found: tuple[PairExtremes, PairExtremes]) -> list[Tensor]:
    """Values that can be summed, and the positions, of the rows and of the columns."""
    results: list[Tensor] = []
    for side in found:
        results += [value.masked_fill(at < 0, 0) for value, at in zip(side[:2], side[2:], strict=True)]
        results += side[2:]
    return results


# ---- values and gradients of everything


def cases() -> dict[str, ModifiedCase]:
    """With an anchor that has no positive, and one with no candidate at all."""
    found = problems()
    torch.manual_seed(4)
    plain = make(31, 44, 6, offset=None, scale="rows", normalize=True)
    found["unit, a scale a row"] = make_modified(plain)
    plain = make(31, 44, 6, offset=None)
    found["col_scale"] = make_modified(plain.update(col_scale=torch.rand(44).double() + 0.5), "PairMLP", "LabelTable")
    for name, whole in found.items():
        row_ids, case = whole.case.row_ids.clone(), whole.case
        row_ids[5] = 99
        case = replace(case, row_ids=row_ids, **({"col_ids": row_ids} if "y" not in case.leaves else {}))
        if "row_bias" in case.leaves:
            row_bias = case.leaves["row_bias"].clone()
            row_bias[7] = -torch.inf
            case = case.update(row_bias=row_bias)
        found[name] = ModifiedCase(case, whole.modifiers)
    return found


def dense(whole: ModifiedCase, leaves: dict[str, Tensor]) -> list[Tensor]:
    if "col_scale" in leaves:
        leaves = leaves | {"y": leaves["y"] * leaves["col_scale"][:, None]}
    logits = dense_logits(whole, leaves)
    values, indices = [], []
    for turned in (False, True):
        own = logits.T if turned else logits
        for inside, sign in zip(pair_sets(whole.case), (1, -1), strict=True):
            indices.append(extremes(own.detach(), inside.T if turned else inside, sign)[1])
            chosen = own.gather(1, indices[-1].clamp_min(0)[:, None])[:, 0]
            values.append(torch.where(indices[-1] < 0, 0, chosen))
    return [*values[:2], *indices[:2], *values[2:], *indices[2:]]


def weights(whole: ModifiedCase, of_points: Callable[[int], slice]) -> list[Tensor]:
    """Of the results of some of the rows and the columns."""
    case, every = whole.case, torch.linspace(0.5, 2, 100, dtype=torch.float64)
    sizes = [len(case.row_ids)] * 4 + [len(case.col_ids)] * 4
    return [(every[:n] * (k + 1))[of_points(n)] for k, n in enumerate(sizes)]


def on_this_rank(rank: int, world: int) -> dict[Any, Any]:
    found = {}
    for name, whole in cases().items():
        mine, given = of_rank(whole, rank, world), weights(whole, lambda n: bounds(n, rank, world))
        for transport in TRANSPORTS:
            group = group_of(transport)
            for backend in installed("cpu", torch.float64):
                run = lambda x, c=mine, b=backend, g=group: finite(hardest(c, x, g, b))  # noqa: E731
                found[name, transport, backend] = outputs_and_gradients(mine.leaves(), run, given)
    return found


ranks = cache(lambda world: on_ranks(world, on_this_rank))


@pytest.mark.float64
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", cases())
def test_ranks_are_one_process(name: str, world: int, transport: str, backend: str) -> None:
    whole = cases()[name]
    expected, gradients = outputs_and_gradients(whole.leaves(), lambda x: dense(whole, x), weights(whole, slice))
    assert (expected[3] == -1).sum() > 0
    parts = [rank[name, transport, backend] for rank in ranks(world)]
    for k, want in enumerate(expected):
        torch.testing.assert_close(torch.cat([found[k] for found, _ in parts]), want, rtol=0, atol=1e-11)
    for leaf, want in gradients.items():
        torch.testing.assert_close(whole_of([of[leaf] for _, of in parts], want), want, rtol=0, atol=1e-10)


# ---- exact answers: ties across ranks, NaN, nothing


def integers(kind: str) -> Case:
    """Products without a rounding, most of which many pairs have."""
    g = torch.Generator().manual_seed(2)
    x, y = (torch.randint(-1, 2, (13, 3), generator=g).float() for _ in range(2))
    case = make(13, 13, 3, bias=(), scale=1.0, offset=0)
    ids = torch.arange(13) % 4
    if kind == "nan":
        y[[2, 5, 12]], x[6] = torch.nan, torch.nan
    if kind == "nothing":
        ids = ids + 10  # nobody has a positive
        y[:] = torch.tensor([torch.inf, 0, 0])
        x[:, 0] = -1  # and nobody a negative but of the last anchor
        x[12, 0] = 1
    if kind == "infinite":  # the smallest positive is as large as none, on whatever rank it is
        y[:], x[:, 0] = torch.tensor([torch.inf, 0, 0]), 1
    views = torch.arange(13) % 2
    sets = {"denominator": 31, "positives": 31} if kind == "all" else {"denominator": 24, "positives": 6}
    return replace(case.update(x=x, y=y), row_ids=ids, row_views=views, col_ids=torch.arange(13) % 4, col_views=views,
                   **sets)  # fmt: skip


def exact_on_this_rank(rank: int, world: int) -> dict[Any, tuple[Tensor, ...]]:
    found = {}
    at = slice(sum(SPLITS[world][:rank]), sum(SPLITS[world][: rank + 1]))
    for kind in KINDS:
        whole = integers(kind)
        mine = replace(
            whole, leaves={name: x if x.dim() == 0 else x[at].float() for name, x in whole.leaves.items()},
            row_ids=whole.row_ids[at], row_views=whole.row_views[at], col_ids=whole.col_ids[at],
            col_views=whole.col_views[at],
        )  # fmt: skip
        for transport in TRANSPORTS:
            group = group_of(transport)
            for backend in installed("cpu", torch.float32):
                found[kind, transport, backend] = tuple(
                    x for side in hardest(ModifiedCase(mine, ()), mine.leaves, group, backend) for x in side
                )
    return found


KINDS = ("sets", "all", "nan", "nothing", "infinite")
exact_ranks = cache(lambda world: on_ranks(world, exact_on_this_rank))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_is_that_of_one_process(kind: str, world: int, transport: str, backend: str) -> None:
    if kind == "infinite" and backend == "triton":
        pytest.skip("it searches positives with all signs turned, where one of inf is no candidate")
    whole = integers(kind)
    logits = whole.leaves["x"] @ whole.leaves["y"].T
    parts = [rank[kind, transport, backend] for rank in exact_ranks(world)]
    for at, inside, sign, turned in (
        *((k, pair_sets(whole)[k], sign, False) for k, sign in enumerate((1, -1))),
        *((k + 4, pair_sets(whole)[k], sign, True) for k, sign in enumerate((1, -1))),
    ):
        value, index = extremes(logits.T, inside.T, sign) if turned else extremes(logits, inside, sign)
        assert torch.equal(torch.cat([found[at + 2] for found in parts]), index)
        torch.testing.assert_close(torch.cat([found[at] for found in parts]), value, rtol=0, atol=0, equal_nan=True)
