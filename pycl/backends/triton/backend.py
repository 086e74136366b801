# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: the engine's operators as launches of the kernels in ``triton_kernels/``.

Nothing here waits for the device: sizes decide on the host, data decide inside the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pycl.backends import reference

# the two products of a dense gradient are a library's, and so is what is left around them; chosen pairs are few
from pycl.backends.reference import pair_extremes_backward, pair_logits_backward
from pycl.backends.registry import BackendUnavailable
from pycl.backends.triton.support import why_not
from pycl.core.problem import N_STATS, Gradients, Needs, Problem, StatsRow, no_residuals
from pycl.core.sinkhorn import solve

if reason := why_not():
    raise BackendUnavailable(f"backend='triton' is not available: {reason}")

from pycl.backends.triton import cache_keys, gradients, modifiers
from pycl.backends.triton.device import device_of
from pycl.backends.triton.gradients import pair_average_backward
from pycl.backends.triton.launch import cdiv, launch
from pycl.backends.triton.modifiers import NONE as NO_MODIFIERS
from pycl.backends.triton.operands import NO_GRAD, Operands, operands_of, tile_for
from pycl.backends.triton.pair_top import pair_extremes, pair_top
from pycl.backends.triton.schedule import NO_MASK, MaskedRows, masked_rows, num_splits, row_chunks
from pycl.backends.triton.sinkhorn_steps import sinkhorn_codes, sinkhorn_columns
from pycl.backends.triton.slopes import added_up, joined, parts, steeper
from pycl.triton_kernels.backward import Strip, write_weights_kernel
from pycl.triton_kernels.combine import Partials, combine_partials_kernel
from pycl.triton_kernels.forward import forward_kernel
from pycl.triton_kernels.interpreter import INTERPRETED
from pycl.triton_kernels.logit_gradient import GradStats
from pycl.triton_kernels.logits import EXP, LOGITS, RELU, SOFTPLUS, SQUARE, STATISTICS
from pycl.triton_kernels.tile_table import TileConfig

__all__ = [
    "DEVICES",
    "DTYPES",
    "MODIFIERS",
    "pair_average",
    "pair_average_backward",
    "pair_extremes",
    "pair_extremes_backward",
    "pair_logits",
    "pair_logits_backward",
    "pair_stats",
    "pair_stats_backward",
    "pair_sum",
    "pair_sum_backward",
    "pair_top",
    "sinkhorn",
    "sinkhorn_codes",
    "sinkhorn_columns",
]

sinkhorn = partial(solve, sinkhorn_columns, sinkhorn_codes)

if not INTERPRETED:
    cache_keys.settle()

DEVICES = ("cpu",) if INTERPRETED else ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODIFIERS = modifiers.KINDS

WAVES = 4  # of programs, where these take different times
MAPS = {map.value: map for map in (SOFTPLUS, SQUARE, RELU, EXP)}
UNBOUNDED_SLOPES = "square", "exp"  # beyond the range that weights have as float16
COLUMN_PARTIALS = 64 << 20  # bytes of sums over columns that wait to be combined


def pair_stats(
    problem: Problem, slopes: Sequence[float], both_sides: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if slopes and problem.modifiers:  # a slope is a factor of what these add, too
        return reference.pair_stats(problem, slopes, both_sides, save)
    if slopes:
        found = [pair_stats(steeper(problem, slope), (), both_sides, False) for slope in slopes]
        of_rows, of_columns, _ = zip(*found, strict=True)
        return joined(of_rows, slopes), joined(of_columns, slopes), no_residuals(problem)
    operands, symmetric = operands_of(problem), problem.cols is None
    x, y = operands.x, operands.y
    tile = tile_for("forward", operands)
    of_cols = both_sides and not symmetric
    both_sides = both_sides or symmetric
    row_stats, col_stats = (x.new(N_STATS, n) for n in (x.n, y.n if of_cols else 0))
    for masked in masked_rows(operands, tile, symmetric):
        chunks = [(0, masked.rows)]
        if both_sides:
            chunks = row_chunks(masked.rows, COLUMN_PARTIALS, 4 * N_STATS * y.n, tile.rows, least=8)
        for after, here in chunks:
            first = masked.first + after
            partials = _forward(operands, tile, masked, first, here, STATISTICS, symmetric, both_sides)
            n_points = x.n - first if symmetric else here
            launch(
                combine_partials_kernel,
                (cdiv(n_points, tile.cols) + (cdiv(y.n, tile.cols) if of_cols else 0),),
                *(row_stats, col_stats if of_cols else None, x.points, y.points, partials),
                *(x.n, y.n, first, here, len(partials.rows), *operands.offset_and_sets),
                SYMMETRIC=symmetric,
                MASKED=masked.mask is not NO_MASK,
                BM=tile.rows,
                BN=tile.cols,
                PARTIALS=4,
                num_warps=4,
            )
    return row_stats, col_stats, no_residuals(problem)


def pair_stats_backward(
    problem: Problem,
    slopes: Sequence[float],
    row_stats: Tensor,
    col_stats: Tensor,
    residuals: Tensor,
    d_row_stats: list[Tensor | None],
    d_col_stats: list[Tensor | None],
    needs: Needs,
) -> Gradients:
    if slopes and problem.modifiers:
        given = slopes, row_stats, col_stats, residuals, d_row_stats, d_col_stats, needs
        return reference.pair_stats_backward(problem, *given)
    if slopes:
        stats, d_stats = (row_stats, col_stats), (d_row_stats, d_col_stats)
        return added_up(
            (p.slope, pair_stats_backward(p.problem, (), *p.stats, residuals, *p.d_stats, needs))
            for p in parts(problem, slopes, stats, d_stats)
        )
    row_grad_stats = GradStats(row_stats, *d_row_stats)
    if problem.cols is None:
        col_grad_stats = row_grad_stats  # every pair counts once in each of its roles
    else:
        col_grad_stats = GradStats(col_stats, *d_col_stats) if col_stats.shape[1] else NO_GRAD
    return gradients.gradients(problem, row_grad_stats, col_grad_stats, STATISTICS, needs)


def pair_sum(
    problem: Problem, map: str, positive_weight: Tensor | None, counted: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if counted or map not in MAPS:  # no kernel counts
        return reference.pair_sum(problem, map, positive_weight, counted, save)
    if positive_weight is not None:
        found, of_positives = (pair_sum(p, map, None, counted, save) for p in _sets_apart(problem))
        found[0].add_(torch.where(positive_weight == 0, 0, positive_weight * of_positives[0]))
        return found
    operands = operands_of(problem)
    tile = tile_for("forward", operands)
    out = operands.x.new(operands.x.n)
    for masked in masked_rows(operands, tile):
        partials = _forward(operands, tile, masked, masked.first, masked.rows, MAPS[map])
        torch.sum(partials.rows, 0, out=out[masked.first : masked.first + masked.rows])
    return out, out.new_empty(0), no_residuals(problem)


def pair_sum_backward(
    problem: Problem, map: str, positive_weight: Tensor | None, residuals: Tensor, d_sum: Tensor, needs: Needs
) -> Gradients:
    if map in UNBOUNDED_SLOPES or map not in MAPS:
        return reference.pair_sum_backward(problem, map, positive_weight, residuals, d_sum, needs)
    if positive_weight is not None:
        each = zip(_sets_apart(problem), (d_sum, d_sum * positive_weight), strict=True)
        return added_up((1.0, pair_sum_backward(p, map, None, residuals, d, needs)) for p, d in each)
    return gradients.gradients(problem, GradStats(None, d_sum, None, None), NO_GRAD, MAPS[map], needs)


def _sets_apart(problem: Problem) -> tuple[Problem, Problem]:
    """The negatives alone and the positives alone: the kernels know one factor for all terms of a row."""
    return problem._replace(positives=0), problem._replace(pairs=0)


def pair_average(problem: Problem, values: Tensor | None) -> tuple[Tensor, Tensor]:
    if values is None or problem.logit_scale.dim():
        return reference.pair_average(problem, values)
    lse = pair_stats(problem, (), False, False)[0][StatsRow.LSE]
    shift = -lse.masked_fill(lse == -torch.inf, 0)
    return gradients.weighted_sum(problem.shifted(shift), values), lse


def pair_logits(problem: Problem) -> Tensor:
    operands = operands_of(problem)
    x, y, logit_scale = operands[:3]
    tile, features = tile_for("write_weights", operands), x.operand.shape[1]
    out = torch.empty(x.n, y.n, dtype=x.z.dtype, device=x.z.device)
    launch(
        write_weights_kernel,
        (cdiv(x.n, tile.rows) * cdiv(y.n, tile.cols),),
        *(*operands.descriptors(tile), x.points, y.points, logit_scale, NO_MASK, NO_MODIFIERS.data),
        *(NO_GRAD, NO_GRAD, None, Strip(out, None, None, None), out.stride(0)),
        *(x.n, y.n, features, 0, x.n, *operands.offset_and_sets),
        RULE=LOGITS.value,
        ALL_FEATURES=tile.holds(features),
        GROUP_M=8,
        MODIFIERS=NO_MODIFIERS.constant,
        **tile.options(),
    )
    return out


def _forward(
    operands: Operands,
    tile: TileConfig,
    masked: MaskedRows,
    first: int,
    here: int,
    rule: Any,
    symmetric: bool = False,
    both_sides: bool = False,
) -> Partials:
    """Partial sums over ``here`` rows from ``first`` on."""
    x, y, logit_scale = operands[:3]
    features, blocks, n_blocks = x.operand.shape[1], cdiv(here, tile.rows), cdiv(y.n, tile.cols)
    blocks_per_split = _blocks_per_split(operands, tile, first, blocks, symmetric)
    splits = cdiv(n_blocks, blocks_per_split)
    row_partials = x.new(splits, N_STATS, here) if rule is STATISTICS else x.new(splits, here)
    partials = Partials(row_partials, *(x.new(blocks, k, y.n) if both_sides else None for k in (2, 4)))
    launch(
        forward_kernel,
        (blocks, splits),
        *(*operands.descriptors(tile), x.points, y.points, logit_scale, masked.mask),
        *(operands.modifiers.data, partials),
        *(x.n, y.n, features, masked.start, first, here, blocks_per_split, *operands.offset_and_sets),
        RULE=rule.value,
        SYMMETRIC=symmetric,
        ALL_FEATURES=tile.holds(features),
        STAGES=tile.stages,
        FOLD=tile.fold,
        MODIFIERS=operands.modifiers.constant,
        **tile.options(),
    )
    return partials


def _blocks_per_split(operands: Operands, tile: TileConfig, first: int, blocks: int, symmetric: bool) -> int:
    """How many column blocks a program visits, so that no multiprocessor is without work before the end."""
    n_blocks, slots = cdiv(operands.y.n, tile.cols), tile.occupancy * device_of(operands.x.z.device).num_sms
    if not symmetric:
        return cdiv(n_blocks, num_splits(blocks, slots, n_blocks))
    # a block visits fewer the later it comes: together they fill some waves, but for half a split for each block
    visits = blocks * n_blocks - (first * blocks + tile.rows * blocks * (blocks - 1) // 2) // tile.cols
    return cdiv(visits, max(1, WAVES * slots - blocks // 2))
