# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: the engine's operators as launches of the kernels in ``triton_kernels/``.

Nothing here waits for the device: sizes decide on the host, data decide inside the kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

# the two products of a dense gradient are a library's, and so is what is left around them
from pycl.backends.reference import pair_logits_backward
from pycl.backends.registry import BackendUnavailable
from pycl.backends.triton.support import why_not
from pycl.core.problem import STATE, STATS, Gradients, Needs, Problem, nothing_kept
from pycl.core.sinkhorn import solve

if reason := why_not():
    raise BackendUnavailable(f"backend='triton' is not available: {reason}")

from pycl.backends.triton import cache_keys, gradients
from pycl.backends.triton.device import device_of
from pycl.backends.triton.gradients import pair_weighted_sum
from pycl.backends.triton.launch import cdiv, launch, next_power_of_2
from pycl.backends.triton.operands import NOTHING, Sides, sides_of, tile_for
from pycl.backends.triton.pair_top import tile_from, unpack
from pycl.backends.triton.schedule import Plan, planned, portions, split
from pycl.backends.triton.sinkhorn_steps import sinkhorn_codes, sinkhorn_columns
from pycl.triton_kernels.backward import store_tiles
from pycl.triton_kernels.combine import merge
from pycl.triton_kernels.forward import reduce_tiles
from pycl.triton_kernels.interpreter import INTERPRETED
from pycl.triton_kernels.logit_gradient import Slopes
from pycl.triton_kernels.logits import LOGISTIC, LOGITS, STATISTICS
from pycl.triton_kernels.tile_table import Tile
from pycl.triton_kernels.topk import top_of_tiles

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

if not INTERPRETED:
    cache_keys.settle()

DEVICES = ("cpu",) if INTERPRETED else ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

FIELDS = STATS + STATE
WAVES = 4  # of programs, where these take different times
COLUMN_PARTS = 64 << 20  # bytes of sums over columns that wait for their merge
SHORTEST_RUN = 4  # column blocks a program of the search visits
TOP_AT_ONCE = 64  # of the largest logits of a row: what a program has registers for


def pair_stats(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor, Tensor]:
    sides, symmetric = sides_of(problem), problem.cols is None
    x, y, _, offset = sides
    tile = tile_for("reduce", sides)
    sets, points = (problem.denominator, problem.positives), (x.points, y.points)
    columns_too, of_cols = symmetric or both_sides, both_sides and not symmetric
    row_stats, col_stats = (x.reach.new_empty(FIELDS, n) for n in (x.n, y.n if of_cols else 0))
    for plan, start, rows in planned(sides, tile, sets, symmetric):
        strips = portions(rows, COLUMN_PARTS, 4 * FIELDS * y.n, tile.rows, least=8) if columns_too else [(0, rows)]
        for after, here in strips:
            first = start + after
            parts = _reduce_tiles(sides, tile, sets, plan, first, here, STATISTICS, symmetric, columns_too)
            n_points = x.n - first if symmetric else here
            launch(
                merge,
                (cdiv(n_points, tile.cols) + (cdiv(y.n, tile.cols) if of_cols else 0),),
                *(row_stats, col_stats if of_cols else None, *points, *parts),
                *(x.n, y.n, first, here, len(parts[0]), offset, *sets),
                SYMMETRIC=symmetric,
                PLANNED=plan.visits is not None,
                BM=tile.rows,
                BN=tile.cols,
                PARTS=4,
                num_warps=4,
            )
    return row_stats, col_stats, nothing_kept(problem)


def pair_stats_backward(
    problem: Problem,
    row_stats: Tensor,
    col_stats: Tensor,
    kept: Tensor,
    d_row_stats: list[Tensor | None],
    d_col_stats: list[Tensor | None],
    needs: Needs,
) -> Gradients:
    row_slopes = Slopes(row_stats, *d_row_stats)
    if problem.cols is None:
        col_slopes = row_slopes  # every pair counts once in each of its roles
    else:
        col_slopes = Slopes(col_stats, *d_col_stats) if col_stats.shape[1] else NOTHING
    return gradients.gradients(problem, row_slopes, col_slopes, STATISTICS, needs)


def pair_sum(problem: Problem) -> tuple[Tensor, Tensor]:
    sides = sides_of(problem)
    tile, sets = tile_for("reduce", sides), (problem.denominator, problem.positives)
    out: Tensor = sides.x.reach.new_empty(sides.x.n)
    for plan, first, here in planned(sides, tile, sets):
        parts, *_ = _reduce_tiles(sides, tile, sets, plan, first, here, LOGISTIC)
        torch.sum(parts, 0, out=out[first : first + here])
    return out, nothing_kept(problem)


def pair_sum_backward(problem: Problem, kept: Tensor, d_sum: Tensor, needs: Needs) -> Gradients:
    slopes = Slopes(None, d_sum, None, None)
    return gradients.gradients(problem, slopes, NOTHING, LOGISTIC, needs)


def pair_logits(problem: Problem) -> Tensor:
    sides = sides_of(problem)
    x, y, logit_scale, offset = sides
    tile, features = tile_for("store", sides), x.operand.shape[1]
    sets = problem.denominator, problem.positives
    out = torch.empty(x.n, y.n, dtype=x.z.dtype, device=x.z.device)
    launch(
        store_tiles,
        (cdiv(x.n, tile.rows) * cdiv(y.n, tile.cols),),
        *(*sides.descriptors(tile), x.points, y.points, logit_scale, NOTHING, NOTHING),
        *(None, None, out, out.stride(0), None, None, None),
        *(x.n, y.n, features, 0, x.n, offset, *sets),
        RULE=LOGITS.value,
        RESIDENT=tile.holds(features),
        TALL=8,
        **tile.options(),
    )
    return out


def pair_top(problem: Problem, k: int) -> tuple[Tensor, Tensor]:
    sides = sides_of(problem)
    x, y, logit_scale, offset = sides
    features = x.operand.shape[1]
    tile = tile_from(tile_for("reduce", sides), features)
    keys = torch.empty(x.n, k, dtype=torch.int64, device=x.z.device)
    at_once = cdiv(k, cdiv(k, TOP_AT_ONCE))
    pairs, n_blocks = problem.denominator, cdiv(y.n, tile.cols)
    for plan, first, here in planned(sides, tile, (pairs, 0)):
        blocks = cdiv(here, tile.rows)
        # every run begins with nothing to compare with: as few as keep the device busy
        runs = split(blocks, tile.resident * device_of(x.z.device).multiprocessors, cdiv(n_blocks, SHORTEST_RUN))
        below = None
        for start in range(0, k, at_once):
            wanted = min(at_once, k - start)
            parts = keys.new_empty(here, runs * wanted)
            launch(
                top_of_tiles,
                (blocks, runs),
                *(*sides.descriptors(tile), x.points, y.points, logit_scale, *plan[:2], below, parts),
                *(x.n, y.n, features, plan.first, first, here, cdiv(n_blocks, runs), wanted, offset, pairs),
                K=next_power_of_2(at_once),
                RESIDENT=tile.holds(features),
                **tile.options(),
            )
            best = parts.topk(wanted).values
            keys[first : first + here, start : start + wanted] = best
            below = best[:, -1].contiguous()
    return unpack(keys)


def _reduce_tiles(
    sides: Sides,
    tile: Tile,
    sets: tuple[int, int],
    plan: Plan,
    first: int,
    here: int,
    rule: Any,
    symmetric: bool = False,
    columns_too: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Parts of the sums over ``here`` rows from ``first`` on: the rows', the columns' in both sets."""
    x, y, logit_scale, offset = sides
    features, blocks, n_blocks = x.operand.shape[1], cdiv(here, tile.rows), cdiv(y.n, tile.cols)
    run = _run(sides, tile, first, blocks, symmetric)
    runs = cdiv(n_blocks, run)
    new = x.reach.new_empty
    row_parts = new(runs, here) if rule is LOGISTIC else new(runs, FIELDS, here)
    den_parts, pos_parts = (new(blocks, k, y.n) if columns_too else None for k in (2, 4))
    launch(
        reduce_tiles,
        (blocks, runs),
        *(*sides.descriptors(tile), x.points, y.points, logit_scale),
        *(*plan[:3], row_parts, den_parts, pos_parts),
        *(x.n, y.n, features, plan.first, first, here, run, offset, *sets),
        RULE=rule.value,
        SYMMETRIC=symmetric,
        RESIDENT=tile.holds(features),
        STAGES=tile.stages,
        FOLD=tile.fold,
        **tile.options(),
    )
    return row_parts, den_parts, pos_parts


def _run(sides: Sides, tile: Tile, first: int, blocks: int, symmetric: bool) -> int:
    """How many column blocks a program visits, so that no multiprocessor is without one before the end."""
    n_blocks, slots = cdiv(sides.y.n, tile.cols), tile.resident * device_of(sides.x.z.device).multiprocessors
    if not symmetric:
        return cdiv(n_blocks, split(blocks, slots, n_blocks))
    # a block visits fewer the later it comes: together they fill some waves, but for half a run for each block
    visits = blocks * n_blocks - (first * blocks + tile.rows * blocks * (blocks - 1) // 2) // tile.cols
    return cdiv(visits, max(1, WAVES * slots - blocks // 2))
