# SPDX-License-Identifier: Apache-2.0
"""The largest logits of every row, on the host's side: the tile of a search, its splits, its keys unpacked."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.backends import reference
from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import cdiv, launch, next_power_of_2
from pycl.backends.triton.operands import operands_of, tile_for, with_one_scale
from pycl.backends.triton.schedule import masked_rows, num_splits
from pycl.core.problem import Problem
from pycl.triton_kernels.tile_table import TileConfig
from pycl.triton_kernels.topk import LAST, topk_kernel

SHORTEST_SPLIT = 4  # column blocks a program visits
TOP_AT_ONCE = 64  # of the largest logits of a row: what a program has registers for


def pair_top(problem: Problem, k: int, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, index = _top_of_rows(problem, k)
    if not both_sides:
        return values, index, values.new_empty(0, k), index.new_empty(0, k)  # views would be refused as outputs
    # A second launch on the transposed operands: a program of the search owns rows alone.
    return values, index, *_top_of_rows(with_one_scale(problem).transposed(), k)


def pair_extremes(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With modifiers in plain torch: what they add is no bias whose sign could be turned."""
    if problem.modifiers:
        return reference.pair_extremes(problem, both_sides)
    values, index = _extremes_of_rows(problem)
    if not both_sides:
        return values, index, values.new_empty(2, 0), index.new_empty(2, 0)
    # Launches on the transposed operands: a program of the search owns rows alone.
    return values, index, *_extremes_of_rows(with_one_scale(problem).transposed())


def _extremes_of_rows(problem: Problem) -> tuple[Tensor, Tensor]:
    """Two searches of one key each: the positives with all signs turned. A product of -inf hides larger positives."""
    negative, negative_index = _top_of_rows(problem, 1)
    turned = problem._replace(
        pairs=problem.positives,
        logit_scale=-problem.logit_scale,
        row_bias=_turned(problem.row_bias),
        col_bias=_turned(problem.col_bias),
    )
    positive, positive_index = _top_of_rows(turned, 1)
    return torch.cat([negative.T, -positive.T]), torch.cat([negative_index.T, positive_index.T])


def _turned(bias: Tensor | None) -> Tensor | None:
    """The negated bias; -inf, which leaves a point out, stays."""
    return None if bias is None else torch.where(bias == -torch.inf, bias, -bias)


def _top_of_rows(problem: Problem, k: int) -> tuple[Tensor, Tensor]:
    operands = operands_of(problem._replace(positives=0))
    x, y, logit_scale = operands[:3]
    features = x.operand.shape[1]
    tile = tile_from(tile_for("forward", operands), features)
    keys = torch.empty(x.n, k, dtype=torch.int64, device=x.z.device)
    at_once = cdiv(k, cdiv(k, TOP_AT_ONCE))
    n_blocks, slots = cdiv(y.n, tile.cols), tile.occupancy * device_of(x.z.device).num_sms
    for masked in masked_rows(operands, tile):
        first, here = masked.first, masked.rows
        blocks = cdiv(here, tile.rows)
        # every split begins with nothing to compare with: as few as keep the device busy
        splits = num_splits(blocks, slots, cdiv(n_blocks, SHORTEST_SPLIT))
        below = None
        for start in range(0, k, at_once):
            wanted = min(at_once, k - start)
            candidates = keys.new_empty(here, splits * wanted)
            launch(
                topk_kernel,
                (blocks, splits),
                *(*operands.descriptors(tile), x.points, y.points, logit_scale, masked.mask, below, candidates),
                *(x.n, y.n, features, masked.start, first, here, cdiv(n_blocks, splits), wanted),
                *(operands.offset, operands.pairs),
                K=next_power_of_2(at_once),
                ALL_FEATURES=tile.holds(features),
                **tile.options(),
            )
            best = candidates.topk(wanted).values
            keys[first : first + here, start : start + wanted] = best
            below = best[:, -1].contiguous()
    return unpack(keys)


def tile_from(tile: TileConfig, d: int) -> TileConfig:
    """The tile of a search for features d from that of a reduction.

    Narrow: 64 keys of a row and 128 columns do not fit in the registers of sm_80 and sm_100, and the more pairs a tile
    has, the more often one row holds up the others. Short where all features are at hand: nothing loads ahead of the
    search's loop, so other programs have to fill the wait for the next block.
    """
    rows, warps = (64, 4) if tile.holds(d) else (128, 8)
    return tile._replace(
        rows=min(tile.rows, rows), cols=min(tile.cols, 64), piece=min(tile.piece, 64), warps=warps, occupancy=2
    )


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The logits in float32 and the columns in int64 of int64 keys [m, k]; -inf and -1 where there is no candidate."""
    low, high = keys.view(torch.int32).unflatten(1, (-1, 2)).unbind(2)  # as a little-endian machine has them
    values = (high ^ ((high >> 31) & LAST.value)).view(torch.float32)
    return values, (low ^ LAST.value).clamp_(min=-1).to(torch.int64)
