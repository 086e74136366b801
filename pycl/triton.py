# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: the engine's operators as launches of the kernels in ``triton_kernels/``.

Nothing here waits for the device: sizes decide on the host, data decide inside the kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from .backends import BackendUnavailable
from .problem import STATE, STATS, Gradients, Needs, Problem

# the two products of a dense gradient are a library's, and so is what is left around them
from .reference import pair_logits_backward
from .sinkhorn import solve
from .triton_kernels.support import why_not

if reason := why_not():
    raise BackendUnavailable(f"backend='triton' is not available: {reason}")

import triton

from .triton_kernels import backward, gradient, reduce, top
from .triton_kernels.backward import NOTHING, pair_weighted_sum
from .triton_kernels.launch import INTERPRETED, launch
from .triton_kernels.sides import Sides, multiprocessors, plan, portion, sides_of, split, tile_for
from .triton_kernels.sinkhorn import sinkhorn_codes, sinkhorn_columns
from .triton_kernels.tile import LOGISTIC, LOGITS, STATISTICS
from .triton_kernels.tiles import Tile
from .triton_kernels.weights import Slopes

__all__ = [
    "DEVICES",
    "DTYPES",
    "pair_logits",
    "pair_logits_backward",
    "pair_stats",
    "pair_stats_backward",
    "pair_sum",
    "pair_sum_backward",
    "pair_top",
    "pair_weighted_sum",
    "sinkhorn",
    "sinkhorn_codes",
    "sinkhorn_columns",
]

sinkhorn = partial(solve, sinkhorn_columns, sinkhorn_codes)

DEVICES = ("cpu",) if INTERPRETED else ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

FIELDS = STATS + STATE
LONGEST_RUN = 16  # column blocks a program of the forward visits
COLUMN_PARTS = 32 << 20  # bytes of sums over columns that wait for their merge
VISITS = 16 << 20  # bytes of lists of visits
SHORTEST_RUN = 4  # column blocks a program of the search visits
TOP_AT_ONCE = 64  # of the largest logits of a row: what a program has registers for


def pair_stats(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor]:
    sides, symmetric = sides_of(problem), problem.cols is None
    x, y, _, offset = sides
    tile = tile_for("reduce", sides)
    sets, points = (problem.denominator, problem.positives), (x.points, y.points)
    columns_too = symmetric or both_sides
    new = x.reach.new_empty
    row_stats, col_stats = new(FIELDS, x.n), new(FIELDS, y.n if both_sides and not symmetric else 0)

    def merge(stats: Tensor, start: int, end: int, fresh: bool, final: int, *parts: Tensor | None) -> None:
        block = tile.rows if parts[1] is None else tile.cols
        launch(
            reduce.merge,
            (triton.cdiv(end - start, block),),
            *(stats, *points, *parts, x.n, stats.shape[1], start, int(fresh), final, first, here, runs, offset, *sets),
            SYMMETRIC=symmetric,
            BM=tile.rows,
            BN=block,
            PARTS=4,
            num_warps=4,
        )

    rows = portion(COLUMN_PARTS, 4 * FIELDS * y.n, tile, least=8) if columns_too else _rows_of_plan(sides, tile)
    for first in range(0, x.n, rows):
        here = min(rows, x.n - first)
        last = first + here == x.n
        row_parts, *col_parts = _reduce_tiles(sides, tile, sets, first, here, STATISTICS, symmetric, columns_too)
        runs = len(row_parts)
        if symmetric:
            merge(row_stats, first, x.n, first == 0, first + here, row_parts, *col_parts)
        else:
            merge(row_stats, first, first + here, True, first + here, row_parts, None, None)
            if both_sides:
                merge(col_stats, 0, y.n, first == 0, y.n if last else 0, None, *col_parts)
    return row_stats, col_stats


def pair_stats_backward(
    problem: Problem,
    row_stats: Tensor,
    col_stats: Tensor,
    d_row_stats: list[Tensor | None],
    d_col_stats: list[Tensor | None],
    needs: Needs,
) -> Gradients:
    row_slopes = Slopes(row_stats, *d_row_stats)
    if problem.cols is None:
        col_slopes = row_slopes  # every pair counts once in each of its roles
    else:
        col_slopes = Slopes(col_stats, *d_col_stats) if col_stats.shape[1] else NOTHING
    return cast(Gradients, backward.gradients(problem, row_slopes, col_slopes, STATISTICS, needs))


def pair_sum(problem: Problem) -> Tensor:
    sides = sides_of(problem)
    tile, n = tile_for("reduce", sides), sides.x.n
    out: Tensor = sides.x.reach.new_empty(n)
    rows = _rows_of_plan(sides, tile)
    for first in range(0, n, rows):
        here = min(rows, n - first)
        parts, *_ = _reduce_tiles(sides, tile, (problem.denominator, problem.positives), first, here, LOGISTIC)
        torch.sum(parts, 0, out=out[first : first + here])
    return out


def pair_sum_backward(problem: Problem, sums: Tensor, d_sum: Tensor, needs: Needs) -> Gradients:
    slopes = Slopes(None, d_sum, None, None)
    return cast(Gradients, backward.gradients(problem, slopes, NOTHING, LOGISTIC, needs))


def pair_logits(problem: Problem) -> Tensor:
    sides = sides_of(problem)
    x, y, logit_scale, offset = sides
    tile, features = tile_for("store", sides), x.operand.shape[1]
    sets = problem.denominator, problem.positives
    out = torch.empty(x.n, y.n, dtype=x.z.dtype, device=x.z.device)
    launch(
        gradient.store_tiles,
        (triton.cdiv(x.n, tile.rows) * triton.cdiv(y.n, tile.cols),),
        *(*sides.descriptors(tile), x.points, y.points, logit_scale, NOTHING, NOTHING),
        *(None, None, out, out.stride(0), None, None, None),
        *(x.n, y.n, features, 0, x.n, offset, *sets),
        RULE=LOGITS,
        RESIDENT=tile.holds(features),
        TALL=8,
        **tile.options(),
    )
    return out


def pair_top(problem: Problem, k: int) -> tuple[Tensor, Tensor]:
    sides = sides_of(problem)
    x, y, logit_scale, offset = sides
    features = x.operand.shape[1]
    tile = top.tile_from(tile_for("reduce", sides), features)
    keys = torch.empty(x.n, k, dtype=torch.int64, device=x.z.device)
    at_once = triton.cdiv(k, triton.cdiv(k, TOP_AT_ONCE))
    n_blocks = triton.cdiv(y.n, tile.cols)
    rows = _rows_of_plan(sides, tile)
    for first in range(0, x.n, rows):
        here = min(rows, x.n - first)
        blocks = triton.cdiv(here, tile.rows)
        # every run begins with nothing to compare with: as few as keep the device busy
        runs = split(blocks, tile.resident * multiprocessors(x.z.device), triton.cdiv(n_blocks, SHORTEST_RUN))
        visits, counts, _ = plan(sides, tile, (problem.denominator, 0), first, here)
        below = None
        for start in range(0, k, at_once):
            wanted = min(at_once, k - start)
            parts = keys.new_empty(here, runs * wanted)
            launch(
                top.top_of_tiles,
                (blocks, runs),
                *(*sides.descriptors(tile), x.points, y.points, logit_scale, visits, counts, below, parts),
                *(x.n, y.n, features, first, here, triton.cdiv(n_blocks, runs), wanted, offset, problem.denominator),
                K=triton.next_power_of_2(at_once),
                RESIDENT=tile.holds(features),
                **tile.options(),
            )
            best = parts.topk(wanted).values
            keys[first : first + here, start : start + wanted] = best
            below = best[:, -1].contiguous()
    return cast("tuple[Tensor, Tensor]", top.unpack(keys))


def _reduce_tiles(
    sides: Sides,
    tile: Tile,
    sets: tuple[int, int],
    first: int,
    here: int,
    rule: Any,
    symmetric: bool = False,
    columns_too: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Parts of the sums over ``here`` rows from ``first`` on: the rows', the columns' in both sets."""
    x, y, logit_scale, offset = sides
    features, blocks = x.operand.shape[1], triton.cdiv(here, tile.rows)
    runs, run = _runs(sides, tile, blocks)
    new = x.reach.new_empty
    row_parts = new(runs, here) if rule is LOGISTIC else new(runs, FIELDS, here)
    den_parts, pos_parts = (new(blocks, k, y.n) if columns_too else None for k in (2, 4))
    launch(
        reduce.reduce_tiles,
        (blocks, runs),
        *(*sides.descriptors(tile), x.points, y.points, logit_scale),
        *(*plan(sides, tile, sets, first, here, symmetric), row_parts, den_parts, pos_parts),
        *(x.n, y.n, features, first, here, run, offset, *sets),
        RULE=rule,
        SYMMETRIC=symmetric,
        RESIDENT=tile.holds(features),
        STAGES=tile.stages,
        FOLD=tile.fold,
        **tile.options(),
    )
    return row_parts, den_parts, pos_parts


def _rows_of_plan(sides: Sides, tile: Tile) -> int:
    return int(portion(VISITS, 4 * triton.cdiv(sides.y.n, tile.cols), tile))


def _runs(sides: Sides, tile: Tile, blocks: int) -> tuple[int, int]:
    """How many programs share the columns of a block of rows, and how many column blocks each of them visits."""
    n_blocks = triton.cdiv(sides.y.n, tile.cols)
    busy = 4 * tile.resident * multiprocessors(sides.x.z.device)
    run = max(1, min(LONGEST_RUN, blocks * n_blocks // busy))
    return triton.cdiv(n_blocks, run), run
