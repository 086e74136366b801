# SPDX-License-Identifier: Apache-2.0
"""The pair classes of single pairs, and those that whole tiles may have.

The five classes are the bits of ``pycl.Pairs``: SELF 1, POS_SAME_VIEW 2, POS_OTHER_VIEW 4, NEG_SAME_VIEW 8,
NEG_OTHER_VIEW 16. Point i of the rows is point i + offset of the columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LABEL_GROUP = tl.constexpr(32)  # points whose labels share one range; every tile is a multiple of it
LOWEST, HIGHEST = tl.constexpr(-(2**63)), tl.constexpr(2**63 - 1)
NO_SELF = tl.constexpr(2**31 - 1)  # the offset where no point meets itself: an index beyond all

# Arguments whose value no kernel is compiled for again. Triton specialises every integer in a tuple that a launch hands
# over, whatever ``do_not_specialize`` says: so these are no parts of tuples, and kernels make tuples of them.
UNSPECIALIZED = (
    *("m", "n", "d", "k", "offset", "pairs", "positives", "first_row", "rows_here"),
    *("mask_start", "blocks_per_split", "n_splits"),
)


class PointAttributes(NamedTuple):
    """What the points of one side have beside their embeddings: pointers, or None for a factor of 1 and a bias of 0."""

    ids: Any  # int64 [n]; None: numbered
    views: Any  # int64 [n]; None: all of one view
    ranges: Any  # int64 [4, groups]
    factor: Any  # float32 [n], a scale of each point's own
    bias: Any  # float32 [n], nats


class PairMatrix(NamedTuple):
    """All pairs of rows and columns, and which of them count; a kernel makes it of its arguments."""

    rows: Any  # PointAttributes
    cols: Any
    m: Any
    n: Any
    offset: Any
    pairs: Any  # the classes of the first pair set: those in the log-sum-exp, or whose logits should be small
    positives: Any


@triton.jit
def load_ids(ids, i, n):
    """Points without ids are numbered."""
    if ids is None:
        return i.to(tl.int64)
    else:
        return tl.load(ids + i, mask=i < n, other=0)


@triton.jit
def load_views(views, i, n):
    """Points without views are of one view."""
    if views is None:
        return tl.zeros(i.shape, tl.int64)
    else:
        return tl.load(views + i, mask=i < n, other=0)


@triton.jit
def load_ranges(points, group, groups):
    """Smallest and largest id, smallest and largest view over the last axis of a tensor of groups."""
    at, here = points.ranges + group, group < groups
    return (
        tl.min(tl.load(at, mask=here, other=HIGHEST), -1),
        tl.max(tl.load(at + groups, mask=here, other=LOWEST), -1),
        tl.min(tl.load(at + 2 * groups, mask=here, other=HIGHEST), -1),
        tl.max(tl.load(at + 3 * groups, mask=here, other=LOWEST), -1),
    )


@triton.jit
def load_block_ranges(points, block, n, B: tl.constexpr):
    group = block * (B // LABEL_GROUP) + tl.arange(0, B // LABEL_GROUP)
    return load_ranges(points, group, tl.cdiv(n, LABEL_GROUP))


@triton.jit
def _possible_classes(row, col, meets_itself):
    """The classes that pairs between two blocks may have, as bits; pairs have no others."""
    same_id = (row[0] <= col[1]) & (col[0] <= row[1])
    one_id = (row[0] == row[1]) & (col[0] == col[1]) & (row[0] == col[0])
    same_view = (row[2] <= col[3]) & (col[2] <= row[3])
    one_view = (row[2] == row[3]) & (col[2] == col[3]) & (row[2] == col[2])
    found = tl.where(meets_itself, 1, 0) | tl.where(same_id & same_view, 2, 0)
    found |= tl.where(same_id & (one_view == 0), 4, 0) | tl.where((one_id == 0) & same_view, 8, 0)
    return found | tl.where((one_id == 0) & (one_view == 0), 16, 0)


@triton.jit
def _meets_itself(r0, c0, offset, BM: tl.constexpr, BN: tl.constexpr):
    """Whether the tile whose first pair is (r0, c0) holds a pair of a point with itself."""
    diagonal = r0 + offset - c0  # 64 bits, as r0 is
    return (diagonal > -BM) & (diagonal < BN)


@triton.jit
def classes_of_pairs(matrix, i, j):
    """The class bit of every pair of a tile; 0 where there is no point."""
    rows, cols, m, n = matrix.rows, matrix.cols, matrix.m, matrix.n
    same_id = load_ids(rows.ids, i, m)[:, None] == load_ids(cols.ids, j, n)[None, :]
    same_view = load_views(rows.views, i, m)[:, None] == load_views(cols.views, j, n)[None, :]
    found = tl.where(same_id, tl.where(same_view, 2, 4), tl.where(same_view, 8, 16))
    found = tl.where((i.to(tl.int64) + matrix.offset)[:, None] == j[None, :], 1, found)
    return tl.where((i < m)[:, None] & (j < n)[None, :], found, 0)


@triton.jit
def classes_of_tile(matrix, row_range, col_range, r0, c0, BM: tl.constexpr, BN: tl.constexpr):
    """The classes that pairs of the tile whose first pair is (r0, c0) may have, as bits."""
    meets_itself = _meets_itself(r0.to(tl.int64), c0.to(tl.int64), matrix.offset, BM, BN)
    return _possible_classes(row_range, col_range, meets_itself)


@triton.jit
def is_full(matrix, classes, r0, c0, BM: tl.constexpr, BN: tl.constexpr):
    """Whether every pair of the tile is in the first pair set and none is a positive, so that no label is looked at."""
    end = tl.where(r0 + BM <= matrix.m, matrix.n, 0)  # tiles that stick out are partial
    return (c0 + BN <= end) & ((classes & (31 ^ matrix.pairs)) == 0) & ((classes & matrix.positives) == 0)


@triton.jit
def transposed(offset):
    """The offset of the matrix with rows and columns exchanged."""
    return tl.where(offset == NO_SELF, offset, -offset)
