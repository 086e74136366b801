# SPDX-License-Identifier: Apache-2.0
"""Objectives on ranks that share a batch: two and three gloo processes against one, in both transports."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.objective_cases import cast, share_of_rank, values_and_gradients
from helpers.spawn import on_ranks
from torch import Tensor

from pycl.distributed import Ring
from pycl.testing.objectives import OBJECTIVES

N, D = 13, 5
ENDS = {1: [], 2: [8], 3: [6, 7]}  # uneven shares
SHARED = {name: row for name, row in OBJECTIVES.items() if row.batch}


def found_by(name: str, rank: int, world: int, **options: Any) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    row = SHARED[name]
    torch.manual_seed(0)
    arguments = share_of_rank(cast(row.make(N, D), torch.float64), row.batch, rank, ENDS[world], N)
    scalars = {key: torch.tensor(value, dtype=torch.float64) for key, value in row.scalars.items()}
    return values_and_gradients(lambda x, s: row(x, s, **options), arguments, scalars)


def all_objectives(rank: int, world: int) -> dict[Any, Any]:
    groups = {"gather": dist.group.WORLD, "ring": Ring(dist.group.WORLD)}
    return {(name, how): found_by(name, rank, world, group=group) for name in SHARED for how, group in groups.items()}


objectives_on = cache(lambda world: on_ranks(world, all_objectives))


@pytest.mark.parametrize("transport", ["gather", "ring"])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", SHARED)
def test_ranks_together_are_one_process(name: str, world: int, transport: str) -> None:
    """The ranks' values average to that of one process, and their gradients add up to as many times its gradient."""
    values, gradients = found_by(name, 0, 1)
    parts = [rank[name, transport] for rank in objectives_on(world)]
    for k, expected in enumerate(values):
        torch.testing.assert_close(sum(part[0][k] for part in parts) / world, expected, rtol=0, atol=1e-10)
    for leaf, expected in gradients.items():
        if expected is None:
            continue
        mine = [part[1][leaf] / world for part in parts]
        axis = SHARED[name].batch.get(leaf.partition("[")[0])
        whole = sum(mine) if axis is None else torch.cat(mine, axis)
        torch.testing.assert_close(whole, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SHARED)
def test_a_group_that_is_none_is_refused(name: str) -> None:
    row = SHARED[name]
    with pytest.raises(TypeError, match="group"):
        row(row.make(6, 4), row.scalars, group=object())
