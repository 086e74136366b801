# SPDX-License-Identifier: Apache-2.0
"""What a sweep visits, and in what chunks: by sizes on the host, by data on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import cdiv, launch
from pycl.backends.triton.operands import Operands
from pycl.triton_kernels.block_mask import BlockMask, block_mask_kernel
from pycl.triton_kernels.tile_table import TileConfig

SMALL = 8192  # pairs, a tile, for each multiprocessor
BLOCK_LISTS = 16 << 20  # bytes of lists of column blocks
NO_MASK = BlockMask(None, None, None)


class MaskedRows(NamedTuple):
    """Rows of one block mask, which is made and stays on the device."""

    mask: BlockMask  # NO_MASK where the problem is too small for one to pay
    first: int
    rows: int
    start: int = 0  # the row block that the mask begins with


def is_small(operands: Operands) -> bool:
    """Whether looking at every pair's classes takes less time than a launch that finds the tiles where none needs to.

    A thousand points are a tile for each multiprocessor, some microseconds.
    """
    return operands.x.n * operands.y.n <= SMALL * device_of(operands.x.z.device).num_sms


def masked_rows(
    operands: Operands, tile: TileConfig, symmetric: bool = False, known: MaskedRows | None = None
) -> Iterator[MaskedRows]:
    """All rows in chunks that have a mask each; at once where theirs is ``known`` already."""
    n, n_blocks = operands.x.n, cdiv(operands.y.n, tile.cols)
    if known is not None or is_small(operands):
        yield known or MaskedRows(NO_MASK, 0, n)
        return
    for first, rows in row_chunks(n, BLOCK_LISTS, 4 * n_blocks, tile.rows):
        yield _block_masks(operands, tile, first, rows, symmetric, False)[0]


def masks_of_both_sides(operands: Operands, tile: TileConfig) -> tuple[MaskedRows | None, MaskedRows | None]:
    """Of all rows, and of all columns of the transposed matrix, from one launch where there is memory for both."""
    m, n = operands.x.n, operands.y.n
    lists = max(cdiv(m, tile.rows) * cdiv(n, tile.cols), cdiv(n, tile.rows) * cdiv(m, tile.cols))
    if is_small(operands) or 4 * lists > BLOCK_LISTS:
        return None, None
    return _block_masks(operands, tile, 0, m, False, True)


def bound_alone(operands: Operands, tile: TileConfig) -> BlockMask:
    """A mask without lists: whether logits are bounded, for a kernel that finds for itself what it visits."""
    if is_small(operands) or operands.modifiers.constant:
        return NO_MASK
    rows = min(tile.rows, operands.x.n)
    return NO_MASK._replace(logits_bounded=_block_masks(operands, tile, 0, rows, False, False)[0].mask.logits_bounded)


def _block_masks(
    operands: Operands, tile: TileConfig, first: int, rows: int, symmetric: bool, both_sides: bool
) -> tuple[MaskedRows, MaskedRows]:
    x, y = operands.x, operands.y
    row_blocks, col_blocks = cdiv(rows, tile.rows), cdiv(y.n, tile.rows) if both_sides else 0
    new = functools.partial(torch.empty, dtype=torch.int32, device=x.z.device)
    bounded: Tensor = new(1)
    of_rows = BlockMask(new(row_blocks, cdiv(y.n, tile.cols)), new(row_blocks, 2), bounded)
    of_cols = BlockMask(new(col_blocks, cdiv(x.n, tile.cols)), new(col_blocks, 2), bounded) if both_sides else NO_MASK
    launch(
        block_mask_kernel,
        (row_blocks + col_blocks,),
        *(x.points, y.points, x.bounds, y.bounds, operands.logit_scale, of_rows, of_cols),
        *(x.n, y.n, first, rows, *operands.offset_and_sets),
        SYMMETRIC=symmetric,
        BM=tile.rows,
        BN=tile.cols,
        CHUNK=256,
        num_warps=4,
    )
    if operands.modifiers.constant:  # nobody knows how large logits get
        of_rows, of_cols = (mask._replace(logits_bounded=None) for mask in (of_rows, of_cols))
    return MaskedRows(of_rows, first, rows, first // tile.rows), MaskedRows(of_cols, 0, y.n)


def row_chunks(total: int, budget: int, bytes_a_block: int, block: int, least: int = 1) -> list[tuple[int, int]]:
    """(first, how many) of ``total`` points in chunks of whole blocks, as few as the budget allows and all alike."""
    blocks = cdiv(total, block)
    count = cdiv(blocks, max(least, budget // bytes_a_block))
    rows_per_chunk = cdiv(blocks, count) * block
    return [(first, min(rows_per_chunk, total - first)) for first in range(0, total, rows_per_chunk)]


def num_splits(blocks: int, slots: int, most: int) -> int:
    """Into how many splits to cut the work of every block so that all slots of the device are busy to the end."""

    def use(splits: int) -> float:
        return blocks * splits / (cdiv(blocks * splits, slots) * slots)

    best = 1
    for splits in range(1, max(1, min(most, cdiv(4 * slots, blocks))) + 1):
        if use(splits) > use(best) + 0.02:
            best = splits
    return best
