# SPDX-License-Identifier: Apache-2.0
"""Which column blocks a block of rows visits: found on the device from the ranges of labels, read by the sweeps."""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.pair_classes import (
    GROUP,
    exchanged,
    is_plain,
    kind_of_tile,
    ranges_of,
    ranges_of_block,
)

PROVEN = tl.constexpr(35.0)  # nats: sums of exp(l) with |l| below it neither overflow nor lose digits in float32


@triton.jit(do_not_specialize=["m", "n", "first_row", "rows_here", "offset", "negatives", "positives"])
def plan(
    rows, cols, row_reach, col_reach, logit_scale, visits, counts, col_visits, col_counts, proven,
    m, n, first_row, rows_here, offset, negatives, positives,
    SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The column blocks that each block of the rows [first_row, first_row + rows_here) visits.

    ``visits`` [row blocks, column blocks] holds the plain ones from the left and the mixed ones from the right,
    ``counts`` [row blocks, 2] how many of either; ``col_visits`` and ``col_counts``, or None, the same of all columns
    with the sides exchanged, which the programs behind the rows' find. ``proven`` gets 1 where no logit can exceed
    PROVEN.
    """
    block, row_blocks = tl.program_id(0), tl.cdiv(rows_here, BM)
    if col_visits is None:
        _plan_block(
            rows, cols, visits, counts, block, first_row + block * BM, m, n, offset, negatives, positives,
            SYMMETRIC, BM, BN, CHUNK,
        )  # fmt: skip
    else:
        if block < row_blocks:
            _plan_block(
                rows, cols, visits, counts, block, first_row + block * BM, m, n, offset, negatives, positives,
                False, BM, BN, CHUNK,
            )  # fmt: skip
        else:
            _plan_block(
                cols, rows, col_visits, col_counts, block - row_blocks, (block - row_blocks) * BM, n, m,
                exchanged(offset), negatives, positives, False, BM, BN, CHUNK,
            )  # fmt: skip
    if block == 0:
        bound = _largest(row_reach, m, CHUNK) * _largest(col_reach, n, CHUNK)
        if logit_scale is not None:
            bound *= tl.abs(tl.load(logit_scale))
        bound += _largest(row_reach + tl.cdiv(m, GROUP), m, CHUNK) + _largest(col_reach + tl.cdiv(n, GROUP), n, CHUNK)
        tl.store(proven, tl.where(bound <= PROVEN, 1, 0))  # NaN is not


@triton.jit
def _plan_block(
    rows, cols, visits, counts, block, r0, m, n, offset, negatives, positives,
    SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Row ``block`` of the lists: what the rows from r0 on visit, from their own block on if SYMMETRIC."""
    row_range = ranges_of_block(rows, r0 // BM, m, BM)
    n_blocks = tl.cdiv(n, BN)
    at = visits + block.to(tl.int64) * n_blocks
    n_plain, n_mixed = 0, 0
    for start in range(0, n_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        c0 = blocks * BN
        group = blocks[:, None] * (BN // GROUP) + tl.arange(0, BN // GROUP)[None, :]
        kind = kind_of_tile(row_range, ranges_of(cols, group, tl.cdiv(n, GROUP)), r0, c0, offset, BM, BN)
        useful = ((kind & (negatives | positives)) != 0) & (blocks < n_blocks)
        if SYMMETRIC:
            useful &= c0 >= r0
        plain = useful & is_plain(kind, r0, c0, m, n, negatives, positives, BM, BN)
        mixed = useful & (plain == 0)
        before = tl.cumsum(plain.to(tl.int32), 0), tl.cumsum(mixed.to(tl.int32), 0)
        tl.store(at + n_plain + before[0] - 1, blocks, mask=plain)
        tl.store(at + n_blocks - n_mixed - before[1], blocks, mask=mixed)
        n_plain += tl.sum(plain.to(tl.int32), 0)
        n_mixed += tl.sum(mixed.to(tl.int32), 0)
    tl.store(counts + 2 * block, n_plain)
    tl.store(counts + 2 * block + 1, n_mixed)


@triton.jit
def _largest(reach, n, CHUNK: tl.constexpr):
    largest = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, tl.cdiv(n, GROUP), CHUNK):
        group = start + tl.arange(0, CHUNK)
        largest = tl.maximum(largest, tl.load(reach + group, mask=group < tl.cdiv(n, GROUP), other=0.0))
    return tl.max(largest, 0)


@triton.jit
def runs_of(visits, counts, planned, row_block, n, run, SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Of a row block, what a program's run (axis 1) visits: [begin, middle) plain, [middle, end) mixed.

    ``planned`` is the row block that the plan begins with. Visit t is the column block at ``visits + t`` where it is
    plain and at ``mixed - t`` where it is not: see nth_piece. Without a plan every column block is visited as a mixed
    one, from ``mixed`` on; there are no plain ones.
    """
    n_blocks = tl.cdiv(n, BN)
    if visits is None:
        first = row_block * (BM // BN) if SYMMETRIC else row_block * 0
        begin = tl.minimum(tl.program_id(1) * run, n_blocks - first)
        return first, first, begin, begin, tl.minimum(begin + run, n_blocks - first)
    else:
        block = row_block - planned
        at = visits + block.to(tl.int64) * n_blocks
        n_plain = tl.load(counts + 2 * block)
        n_all = n_plain + tl.load(counts + 2 * block + 1)
        begin = tl.minimum(tl.program_id(1) * run, n_all)
        end = tl.minimum(begin + run, n_all)
        return at, at + n_blocks - 1 + n_plain, begin, tl.maximum(tl.minimum(n_plain, end), begin), end


@triton.jit
def nth_piece(at, t, end, PIECES: tl.constexpr, MIXED: tl.constexpr):
    """Which of all pieces comes t-th where column blocks are visited in PIECES; one past the end is never used."""
    visit = t // PIECES
    if at.dtype.is_ptr():
        block = tl.load(at - visit if MIXED else at + visit, mask=visit < end, other=0)
    else:
        block = at + visit
    return block * PIECES + (t - visit * PIECES)
