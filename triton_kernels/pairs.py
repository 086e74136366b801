# SPDX-License-Identifier: Apache-2.0
"""Which tiles hold pairs that count: pair classes of single pairs, of whole tiles, and the tiles to visit.

The five classes are the bits of ``pycl.Pairs``: SELF 1, POS_SAME_VIEW 2, POS_OTHER_VIEW 4, NEG_SAME_VIEW 8,
NEG_OTHER_VIEW 16. Point i of the rows is point i + offset of the columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.operands import GROUP, HIGHEST, LOWEST, load_ids, load_views

PROVEN = tl.constexpr(35.0)  # nats: sums of exp(l) with |l| below it neither overflow nor lose digits in float32
NOWHERE = tl.constexpr(2**31 - 1)  # an index beyond all; as an offset: no point meets itself


class Points(NamedTuple):
    """One side as the tiles see it: pointers, or None for a factor of 1 and a bias of 0."""

    ids: Any  # int64 [n]; None: numbered
    views: Any  # int64 [n]; None: all of one view
    ranges: Any  # int64 [4, groups]
    factor: Any  # float32 [n], a scale of each point's own
    bias: Any  # float32 [n], nats


@triton.jit
def ranges_of(points, group, groups):
    """Smallest and largest id, smallest and largest view over the last axis of a tensor of groups."""
    at, here = points.ranges + group, group < groups
    return (
        tl.min(tl.load(at, mask=here, other=HIGHEST), -1),
        tl.max(tl.load(at + groups, mask=here, other=LOWEST), -1),
        tl.min(tl.load(at + 2 * groups, mask=here, other=HIGHEST), -1),
        tl.max(tl.load(at + 3 * groups, mask=here, other=LOWEST), -1),
    )


@triton.jit
def ranges_of_block(points, block, n, B: tl.constexpr):
    return ranges_of(points, block * (B // GROUP) + tl.arange(0, B // GROUP), tl.cdiv(n, GROUP))


@triton.jit
def possible_classes(row, col, meets_itself):
    """The classes that pairs between two blocks may have, as bits; pairs have no others."""
    same_id = (row[0] <= col[1]) & (col[0] <= row[1])
    one_id = (row[0] == row[1]) & (col[0] == col[1]) & (row[0] == col[0])
    same_view = (row[2] <= col[3]) & (col[2] <= row[3])
    one_view = (row[2] == row[3]) & (col[2] == col[3]) & (row[2] == col[2])
    found = tl.where(meets_itself, 1, 0) | tl.where(same_id & same_view, 2, 0)
    found |= tl.where(same_id & (one_view == 0), 4, 0) | tl.where((one_id == 0) & same_view, 8, 0)
    return found | tl.where((one_id == 0) & (one_view == 0), 16, 0)


@triton.jit
def meets_itself(r0, c0, offset, BM: tl.constexpr, BN: tl.constexpr):
    """Whether the tile whose first pair is (r0, c0) holds a pair of a point with itself."""
    diagonal = r0 + offset - c0  # 64 bits, as r0 is
    return (diagonal > -BM) & (diagonal < BN)


@triton.jit
def classes(rows, cols, i, j, m, n, offset):
    """The class bit of every pair of a tile; 0 where there is no point."""
    same_id = load_ids(rows.ids, i, m)[:, None] == load_ids(cols.ids, j, n)[None, :]
    same_view = load_views(rows.views, i, m)[:, None] == load_views(cols.views, j, n)[None, :]
    found = tl.where(same_id, tl.where(same_view, 2, 4), tl.where(same_view, 8, 16))
    found = tl.where((i.to(tl.int64) + offset)[:, None] == j[None, :], 1, found)
    return tl.where((i < m)[:, None] & (j < n)[None, :], found, 0)


@triton.jit
def kind_of_tile(row_range, col_range, r0, c0, offset, BM: tl.constexpr, BN: tl.constexpr):
    return possible_classes(row_range, col_range, meets_itself(r0.to(tl.int64), c0.to(tl.int64), offset, BM, BN))


@triton.jit
def is_plain(kind, r0, c0, m, n, negatives, positives, BM: tl.constexpr, BN: tl.constexpr):
    """Whether every pair of the tile is in the one set and none in the other, so that none has to be looked at."""
    end = tl.where(r0 + BM <= m, n, 0)  # tiles that stick out are not plain
    return (c0 + BN <= end) & ((kind & (31 ^ negatives)) == 0) & ((kind & positives) == 0)


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
def exchanged(offset):
    """The offset of the transposed matrix."""
    return tl.where(offset == NOWHERE, offset, -offset)


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
