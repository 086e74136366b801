# SPDX-License-Identifier: Apache-2.0
"""What a sweep visits, and in what portions: by sizes on the host, by data on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import cdiv, launch
from pycl.backends.triton.operands import Sides
from pycl.triton_kernels.block_mask import plan
from pycl.triton_kernels.tile_table import Tile

SMALL = 8192  # pairs, a tile, for each multiprocessor
VISITS = 16 << 20  # bytes of lists of visits


class Plan(NamedTuple):
    """Which column blocks the row blocks from ``first`` on visit, and whether no logit can be large.

    It is made and stays on the device; all ``None`` where the problem is too small for one to pay.
    """

    visits: Tensor | None  # int32 [row blocks, column blocks]
    counts: Tensor | None  # int32 [row blocks, 2]
    proven: Tensor | None  # int32 [1]
    first: int = 0


EVERY = Plan(None, None, None)


def is_small(sides: Sides) -> bool:
    """Whether looking at every pair's classes takes less time than a launch that finds the tiles where none needs to.

    A thousand points are a tile for each multiprocessor, some microseconds.
    """
    return sides.x.n * sides.y.n <= SMALL * device_of(sides.x.z.device).multiprocessors


def planned(
    sides: Sides, tile: Tile, sets: tuple[int, int], symmetric: bool = False, known: Plan | None = None
) -> Iterator[tuple[Plan, int, int]]:
    """(plan, first row, rows) until all rows have been planned for; at once where it is ``known`` already."""
    n, n_blocks = sides.x.n, cdiv(sides.y.n, tile.cols)
    if known is not None or is_small(sides):
        yield known or EVERY, 0, n
        return
    for first, rows in portions(n, VISITS, 4 * n_blocks, tile.rows):
        yield _plans(sides, tile, sets, first, rows, symmetric, False)[0], first, rows


def plans(sides: Sides, tile: Tile, sets: tuple[int, int]) -> tuple[Plan | None, Plan | None]:
    """Of all rows, and of all columns with the sides exchanged, from one launch where there is memory for both."""
    m, n = sides.x.n, sides.y.n
    lists = max(cdiv(m, tile.rows) * cdiv(n, tile.cols), cdiv(n, tile.rows) * cdiv(m, tile.cols))
    if is_small(sides) or 4 * lists > VISITS:
        return None, None
    return _plans(sides, tile, sets, 0, m, False, True)


def proof(sides: Sides, tile: Tile, sets: tuple[int, int]) -> Tensor | None:
    """``Plan.proven`` alone."""
    return None if is_small(sides) else _plans(sides, tile, sets, 0, min(tile.rows, sides.x.n), False, False)[0].proven


def _plans(
    sides: Sides, tile: Tile, sets: tuple[int, int], first: int, rows: int, symmetric: bool, exchanged: bool
) -> tuple[Plan, Plan]:
    x, y = sides.x, sides.y
    row_blocks, col_blocks = cdiv(rows, tile.rows), cdiv(y.n, tile.rows) if exchanged else 0
    new = functools.partial(torch.empty, dtype=torch.int32, device=x.z.device)
    proven = new(1)
    of_rows = Plan(new(row_blocks, cdiv(y.n, tile.cols)), new(row_blocks, 2), proven, first // tile.rows)
    of_cols = Plan(new(col_blocks, cdiv(x.n, tile.cols)), new(col_blocks, 2), proven) if exchanged else EVERY
    launch(
        plan,
        (row_blocks + col_blocks,),
        *(x.points, y.points, x.reach, y.reach, sides.logit_scale, *of_rows[:2], *of_cols[:2], proven),
        *(x.n, y.n, first, rows, sides.offset, *sets),
        SYMMETRIC=symmetric,
        BM=tile.rows,
        BN=tile.cols,
        CHUNK=256,
        num_warps=4,
    )
    return of_rows, of_cols


def portions(total: int, budget: int, bytes_a_block: int, block: int, least: int = 1) -> list[tuple[int, int]]:
    """(first, how many) of ``total`` points in portions of whole blocks, as few as the budget allows and all alike."""
    blocks = cdiv(total, block)
    count = cdiv(blocks, max(least, budget // bytes_a_block))
    size = cdiv(blocks, count) * block
    return [(first, min(size, total - first)) for first in range(0, total, size)]


def split(blocks: int, slots: int, most: int) -> int:
    """Into how many runs to cut the work of every block so that all slots of the device are busy to the end."""

    def use(runs: int) -> float:
        return blocks * runs / (cdiv(blocks * runs, slots) * slots)

    best = 1
    for runs in range(1, max(1, min(most, cdiv(4 * slots, blocks))) + 1):
        if use(runs) > use(best) + 0.02:
            best = runs
    return best
