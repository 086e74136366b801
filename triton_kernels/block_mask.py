# SPDX-License-Identifier: Apache-2.0
"""Which column blocks a block of rows visits: found on the device from the ranges of labels, read by the sweeps.

As in FlexAttention's BlockMask, a full block is one in which every pair counts alike and no label is looked at; in a
partial block the classes of its pairs decide. Blocks without a pair that counts are not visited.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.pair_classes import (
    LABEL_GROUP,
    UNSPECIALIZED,
    PairMatrix,
    classes_of_tile,
    is_full,
    load_block_ranges,
    load_ranges,
    transposed,
)

LOGIT_BOUND = tl.constexpr(35.0)  # nats: sums of exp(l), |l| below it, neither overflow nor lose digits in float32


class BlockMask(NamedTuple):
    """Lists of column blocks, made and kept on the device; all None where every block is visited as a partial one."""

    block_indices: Any  # int32 [row blocks, column blocks]: full blocks from the left, partial ones from the right
    num_blocks: Any  # int32 [row blocks, 2]: how many of either
    logits_bounded: Any  # int32 [1]: 1 where no logit can exceed LOGIT_BOUND


@triton.jit(do_not_specialize=UNSPECIALIZED)
def block_mask_kernel(
    rows, cols, row_bounds, col_bounds, logit_scale, mask, col_mask,
    m, n, first_row, rows_here, offset, pairs, positives,
    SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The block mask of the rows [first_row, first_row + rows_here).

    ``col_mask``, where it is not None, gets that of all columns, the rows of the transposed matrix, from the programs
    behind the rows'.
    """
    matrix = PairMatrix(rows, cols, m, n, offset, pairs, positives)
    block, row_blocks = tl.program_id(0), tl.cdiv(rows_here, BM)
    if col_mask.block_indices is None:
        _list_blocks(matrix, mask, block, first_row + block * BM, SYMMETRIC, BM, BN, CHUNK)
    else:
        if block < row_blocks:
            _list_blocks(matrix, mask, block, first_row + block * BM, False, BM, BN, CHUNK)
        else:
            other = PairMatrix(cols, rows, n, m, transposed(offset), pairs, positives)
            _list_blocks(other, col_mask, block - row_blocks, (block - row_blocks) * BM, False, BM, BN, CHUNK)
    if block == 0:
        bound = _largest(row_bounds, m, CHUNK) * _largest(col_bounds, n, CHUNK)
        if logit_scale is not None:
            bound *= tl.abs(tl.load(logit_scale))
        bound += _largest(row_bounds + tl.cdiv(m, LABEL_GROUP), m, CHUNK)
        bound += _largest(col_bounds + tl.cdiv(n, LABEL_GROUP), n, CHUNK)
        tl.store(mask.logits_bounded, tl.where(bound <= LOGIT_BOUND, 1, 0))  # NaN is not


@triton.jit
def _list_blocks(
    matrix, mask, block, r0, SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr
):
    """Row ``block`` of the lists: what the rows from r0 on visit, from their own block on if SYMMETRIC."""
    row_range = load_block_ranges(matrix.rows, r0 // BM, matrix.m, BM)
    n_blocks = tl.cdiv(matrix.n, BN)
    at = mask.block_indices + block.to(tl.int64) * n_blocks
    n_full, n_partial = 0, 0
    for start in range(0, n_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        c0 = blocks * BN
        group = blocks[:, None] * (BN // LABEL_GROUP) + tl.arange(0, BN // LABEL_GROUP)[None, :]
        col_range = load_ranges(matrix.cols, group, tl.cdiv(matrix.n, LABEL_GROUP))
        classes = classes_of_tile(matrix, row_range, col_range, r0, c0, BM, BN)
        useful = ((classes & (matrix.pairs | matrix.positives)) != 0) & (blocks < n_blocks)
        if SYMMETRIC:
            useful &= c0 >= r0
        full = useful & is_full(matrix, classes, r0, c0, BM, BN)
        partial = useful & (full == 0)
        before = tl.cumsum(full.to(tl.int32), 0), tl.cumsum(partial.to(tl.int32), 0)
        tl.store(at + n_full + before[0] - 1, blocks, mask=full)
        tl.store(at + n_blocks - n_partial - before[1], blocks, mask=partial)
        n_full += tl.sum(full.to(tl.int32), 0)
        n_partial += tl.sum(partial.to(tl.int32), 0)
    tl.store(mask.num_blocks + 2 * block, n_full)
    tl.store(mask.num_blocks + 2 * block + 1, n_partial)


@triton.jit
def _largest(bounds, n, CHUNK: tl.constexpr):
    largest = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, tl.cdiv(n, LABEL_GROUP), CHUNK):
        group = start + tl.arange(0, CHUNK)
        here = group < tl.cdiv(n, LABEL_GROUP)
        largest = tl.maximum(largest, tl.load(bounds + group, mask=here, other=0.0))
    return tl.max(largest, 0)


@triton.jit
def are_bounded(mask):
    """Whether no logit can exceed LOGIT_BOUND."""
    return False if mask.logits_bounded is None else tl.load(mask.logits_bounded) != 0


@triton.jit
def visits_of(
    mask, mask_start, row_block, n, blocks_per_split, SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """(full, partial, begin, middle, end): what a program visits of a row block, the split of its number on axis 1.

    Visits [begin, middle) are full blocks, [middle, end) partial ones. ``mask_start`` is the row block that the mask
    begins with. Visit t is the column block at ``full + t`` or at ``partial - t``: see nth_block. Without a mask
    every column block is visited as a partial one, from ``partial`` on.
    """
    n_blocks = tl.cdiv(n, BN)
    if mask.block_indices is None:
        first = row_block * (BM // BN) if SYMMETRIC else row_block * 0
        begin = tl.minimum(tl.program_id(1) * blocks_per_split, n_blocks - first)
        return first, first, begin, begin, tl.minimum(begin + blocks_per_split, n_blocks - first)
    else:
        block = row_block - mask_start
        at = mask.block_indices + block.to(tl.int64) * n_blocks
        n_full = tl.load(mask.num_blocks + 2 * block)
        n_all = n_full + tl.load(mask.num_blocks + 2 * block + 1)
        begin = tl.minimum(tl.program_id(1) * blocks_per_split, n_all)
        end = tl.minimum(begin + blocks_per_split, n_all)
        return at, at + n_blocks - 1 + n_full, begin, tl.maximum(tl.minimum(n_full, end), begin), end


@triton.jit
def nth_block(at, t, end, PIECES: tl.constexpr, PARTIAL: tl.constexpr):
    """The t-th block where column blocks are visited in PIECES; the one past the end is never used."""
    visit = t // PIECES
    if at.dtype.is_ptr():
        block = tl.load(at - visit if PARTIAL else at + visit, mask=visit < end, other=0)
    else:
        block = at + visit
    return block * PIECES + (t - visit * PIECES)
