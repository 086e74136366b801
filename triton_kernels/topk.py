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

from pycl.triton_kernels.block_mask import nth_piece, runs_of
from pycl.triton_kernels.logits import load_kept, load_unit, product, to_logits
from pycl.triton_kernels.numerics import MINUS_INFINITY
from pycl.triton_kernels.pair_classes import classes

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
def _sweep(
    best, below, x, y, kept, rows, cols, unit, at, begin, end, r0, m, n, d, offset, pairs,
    MIXED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """The best of a block of rows with the visits [begin, end)."""
    i = r0 + tl.arange(0, BM)
    for t in range(begin * PIECES, end * PIECES):
        c0 = nth_piece(at, t, end, PIECES, MIXED) * BN
        j = c0 + tl.arange(0, BN)
        products, _ = product(x, y, kept, r0, c0, d, BM, BN, BK, RESIDENT, False)
        l = to_logits(products, unit, rows, cols, i, j, m, n, 1.0, not MIXED)
        if MIXED:
            l = tl.where((classes(rows, cols, i, j, m, n, offset) & pairs) != 0, l, MINUS_INFINITY)
        best = _improve(best, l, j, below)
    return best


@triton.jit(
    do_not_specialize=["m", "n", "d", "planned", "first_row", "rows_here", "run", "k", "offset", "pairs"]
)  # fmt: skip
def top_of_tiles(
    x, y, y_piece, rows, cols, logit_scale, visits, counts, below, out,
    m, n, d, planned, first_row, rows_here, run, k, offset, pairs,
    K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    """Row blocks from ``first_row`` on (axis 0) against runs of ``run`` of the column blocks they visit (axis 1).

    ``out`` [rows_here, runs, k] gets the keys of the k <= K largest logits of ``pairs``, in no order; those below
    ``below`` [rows_here] where it is given.
    """
    r0 = first_row + tl.program_id(0) * BM
    local = tl.program_id(0) * BM + tl.arange(0, BM)
    plain, mixed, begin, middle, end = runs_of(visits, counts, planned, r0 // BM, n, run, False, BM, BN)
    unit = load_unit(logit_scale, 1.0)
    kept = load_kept(x, r0, RESIDENT)
    limit = None if below is None else tl.load(below + local, mask=local < rows_here, other=0)
    best = _nothing(BM, K, k)
    if plain.dtype.is_ptr():  # there is a plan
        best = _sweep(
            best, limit, x, y, kept, rows, cols, unit, plain, begin, middle, r0, m, n, d, offset, pairs,
            False, BM, BN, BK, RESIDENT, 1,
        )  # fmt: skip
    best = _sweep(
        best, limit, x, y_piece, kept, rows, cols, unit, mixed, middle, end, r0, m, n, d, offset, pairs,
        True, BM, BP, BK, RESIDENT, BN // BP,
    )  # fmt: skip
    place = tl.arange(0, K)
    at = (local.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * k
    tl.store(out + at[:, None] + place[None, :], best, mask=(local < rows_here)[:, None] & (place < k)[None, :])
