# SPDX-License-Identifier: Apache-2.0
"""The largest logits of every row, from tiles that are never stored.

A candidate is one int64 key: its logit in the high half, so that keys compare as logits do, and the distance of its
column from the last possible one in the low half, so that the lowest of equal logits' columns wins and no two keys of
a row are equal. A program keeps the best keys of its rows in registers. From a tile it takes one candidate a row at a
time, the largest, until no row has one that belongs to its best: after the first tiles these are few, where sorting
every tile would cost the same each time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.block_mask import nth_block, visits_of
from pycl.triton_kernels.logits import Operands, TileShape, load_scale, load_x_block, product, to_logits
from pycl.triton_kernels.numerics import MINUS_INFINITY
from pycl.triton_kernels.pair_classes import UNSPECIALIZED, PairMatrix, classes_of_pairs

LAST = tl.constexpr(2**31 - 1)  # the last possible column; of what floats are ordered as the last too: NaN
NONE = tl.constexpr(-0x7F800001)  # what minus infinity is ordered as
TAKEN = tl.constexpr(-(2**31))  # below all
SPARE = tl.constexpr(2**63 - 1)  # the key of a place that is not used


@triton.jit
def _ordered(l):
    """float32 as int32 that compare alike, NaN of any kind above infinity."""
    bits = (l + 0.0).to(tl.int32, bitcast=True)  # -0 becomes the other zero, its equal
    return tl.where(l == l, bits ^ ((bits >> 31) & LAST), LAST)


@triton.jit
def _nothing(BM: tl.constexpr, K: tl.constexpr, k):
    """[BM, K] keys of k places without a candidate: each its own, and above what a logit of minus infinity has."""
    place = tl.arange(0, K)
    empty = (tl.full((K,), NONE, tl.int64) << 32) | (place.to(tl.int64) + 2147483648)
    return tl.zeros((BM, K), tl.int64) + tl.where(place < k, empty, SPARE)[None, :]


@triton.jit
def _promises(peak, worst):
    """Whether a row's largest logit may belong to its best: the columns decide between equals."""
    return (peak >= (worst >> 32).to(tl.int32)) & (peak > NONE)


@triton.jit
def _improve(best, l, j, below):
    """``best`` [BM, K] with the candidates of a tile of logits in columns j, those below the row's key ``below``."""
    left = _ordered(l)
    if below is not None:
        limit, col = (below >> 32).to(tl.int32), (below & LAST).to(tl.int32) ^ LAST
        after = (left == limit[:, None]) & (j[None, :] > col[:, None])
        left = tl.where((left < limit[:, None]) | after, left, TAKEN)
    worst, peak = tl.min(best, 1), tl.max(left, 1)
    going = _promises(peak, worst)
    while tl.max(going.to(tl.int32), 0) != 0:
        col = tl.min(tl.where(left == peak[:, None], j[None, :], LAST), 1)
        key = (peak.to(tl.int64) << 32) | (col ^ LAST).to(tl.int64)
        going &= key > worst  # if not, nothing else in the row's tile is either
        best = tl.where((best == worst[:, None]) & going[:, None], key[:, None], best)
        left = tl.where(j[None, :] == col[:, None], TAKEN, left)
        worst, peak = tl.min(best, 1), tl.max(left, 1)
        going &= _promises(peak, worst)
    return best


@triton.jit
def _sweep(best, below, operands, matrix, at, begin, end, r0, TILE, PARTIAL: tl.constexpr, PIECES: tl.constexpr):
    """The best of a block of rows with the visits [begin, end)."""
    i = r0 + tl.arange(0, TILE.BM)
    for t in range(begin * PIECES, end * PIECES):
        c0 = nth_block(at, t, end, PIECES, PARTIAL) * TILE.BN
        j = c0 + tl.arange(0, TILE.BN)
        products, _ = product(operands, r0, c0, TILE, False)
        l = to_logits(products, operands.scale, matrix, i, j, 1.0, not PARTIAL)
        if PARTIAL:
            l = tl.where((classes_of_pairs(matrix, i, j) & matrix.pairs) != 0, l, MINUS_INFINITY)
        best = _improve(best, l, j, below)
    return best


@triton.jit(do_not_specialize=UNSPECIALIZED)
def topk_kernel(
    x, y, y_piece, rows, cols, logit_scale, mask, below, out,
    m, n, d, mask_start, first_row, rows_here, blocks_per_split, k, offset, pairs,
    K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    ALL_FEATURES: tl.constexpr,
):  # fmt: skip
    """Row blocks from ``first_row`` on (axis 0) against splits of the column blocks they visit (axis 1).

    ``out`` [rows_here, splits, k] gets the keys of the k <= K largest logits of ``pairs``, in no order; those below
    ``below`` [rows_here] where it is given.
    """
    r0 = first_row + tl.program_id(0) * BM
    local = tl.program_id(0) * BM + tl.arange(0, BM)
    matrix = PairMatrix(rows, cols, m, n, offset, pairs, 0)
    full, partial, begin, middle, end = visits_of(mask, mask_start, r0 // BM, n, blocks_per_split, False, BM, BN)
    scale, x_block = load_scale(logit_scale, 1.0), load_x_block(x, r0, ALL_FEATURES)
    limit = None if below is None else tl.load(below + local, mask=local < rows_here, other=0)
    best = _nothing(BM, K, k)
    if full.dtype.is_ptr():  # there is a block mask
        best = _sweep(
            best, limit, Operands(x, y, scale, x_block, d, None), matrix, full, begin, middle, r0,
            TileShape(BM, BN, BK, ALL_FEATURES), False, 1,
        )  # fmt: skip
    best = _sweep(
        best, limit, Operands(x, y_piece, scale, x_block, d, None), matrix, partial, middle, end, r0,
        TileShape(BM, BP, BK, ALL_FEATURES), True, BN // BP,
    )  # fmt: skip
    place = tl.arange(0, K)
    at = (local.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * k
    tl.store(out + at[:, None] + place[None, :], best, mask=(local < rows_here)[:, None] & (place < k)[None, :])
