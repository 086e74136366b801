# SPDX-License-Identifier: Apache-2.0
"""The weight of every pair: the derivative of the loss with respect to its logit, from what the forward left behind.

All parts of a weight are added in float32 before anything is cast: the difference between a positive's share of the
softmax and its own weight, which is all that is left of a gradient near the optimum, keeps its digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.logits import LOGISTIC
from pycl.triton_kernels.numerics import MINUS_INFINITY, exp2_of_minus, reciprocal
from pycl.triton_kernels.pair_classes import classes

TOP, SMALLEST = tl.constexpr(14.0), tl.constexpr(1e-30)
TERMS = tl.constexpr(6)
WHOLE = tl.constexpr(256)  # points; every side of a tile divides it


class Slopes(NamedTuple):
    """What one side's statistics add to a weight: pointers, or None for those the loss does not depend on."""

    stats: Any  # float32 [6, n]; log-sum-exps in units of log 2 are its last two rows. For a sweep, see ``Tables``
    d_lse: Any  # float32 [n]; of a logistic sum, its derivative
    d_pos_lse: Any
    d_pos_sum: Any


class Tables(NamedTuple):
    """The slopes as a sweep reads them, in place of ``stats``: [TERMS, points up to a WHOLE number], or None.

    A row each: lse, d lse, d lse 2^-lse, pos_lse, d pos_lse, d pos_sum; those that the loss does not depend on are left
    out. Beyond the last point they are zero, so that the sweeps' loops compute nothing of a column and compare no index
    to load it. ``shrink`` [1] or None: the power of two that takes the largest weight there can be to the top of
    float16's range.
    """

    rows: Any
    cols: Any
    shrink: Any


@triton.jit
def tabulate(row_slopes, col_slopes, tables, block, factor, m, n, CHUNK: tl.constexpr):
    """A WHOLE number of points of both sides, and in the first block ``shrink``."""
    _tabulate(row_slopes, tables.rows, block, m)
    _tabulate(col_slopes, tables.cols, block, n)
    if tables.shrink is not None:
        if block == 0:
            bound = _largest(row_slopes.d_lse, m, CHUNK) + _largest(row_slopes.d_pos_lse, m, CHUNK)
            bound += _largest(row_slopes.d_pos_sum, m, CHUNK) + _largest(col_slopes.d_lse, n, CHUNK)
            bound += _largest(col_slopes.d_pos_lse, n, CHUNK) + _largest(col_slopes.d_pos_sum, n, CHUNK)
            if factor is not None:
                bound *= tl.maximum(_largest(factor, m, CHUNK), 1.0)
            exponent = (-tl.log2(tl.maximum(bound, SMALLEST)) + TOP).to(tl.int32)
            tl.store(tables.shrink, tl.exp2(exponent.to(tl.float32)))


@triton.jit
def _tabulate(slopes, table, block, n):
    if table is not None:
        i = block * WHOLE + tl.arange(0, WHOLE)
        step = tl.cdiv(n, WHOLE) * WHOLE
        inside, written = i < n, i < step
        if slopes.d_lse is not None:
            d_lse, lse = tl.load(slopes.d_lse + i, mask=inside, other=0.0), tl.zeros((WHOLE,), tl.float32)
            if slopes.stats is not None:
                lse = _finite(tl.load(slopes.stats + 4 * n + i, mask=inside, other=0.0))
            tl.store(table + i, lse, mask=written)
            tl.store(table + step + i, d_lse, mask=written)
            tl.store(table + 2 * step + i, d_lse * tl.exp2(-lse), mask=written)
        if slopes.d_pos_lse is not None:
            pos_lse = _finite(tl.load(slopes.stats + 5 * n + i, mask=inside, other=0.0))
            tl.store(table + 3 * step + i, pos_lse, mask=written)
            tl.store(table + 4 * step + i, tl.load(slopes.d_pos_lse + i, mask=inside, other=0.0), mask=written)
        if slopes.d_pos_sum is not None:
            tl.store(table + 5 * step + i, tl.load(slopes.d_pos_sum + i, mask=inside, other=0.0), mask=written)


@triton.jit
def _largest(values, n, CHUNK: tl.constexpr):
    if values is None:
        return 0.0
    else:
        largest = tl.zeros((CHUNK,), tl.float32)
        for start in range(0, n, CHUNK):
            i = start + tl.arange(0, CHUNK)
            largest = tl.maximum(largest, tl.abs(tl.load(values + i, mask=i < n, other=0.0)))
        return tl.max(largest, 0)


@triton.jit
def load_slopes(slopes, i, n):
    """(lse, d lse, d lse 2^-lse, pos_lse, d pos_lse, d pos_sum) of a block of points, from their ``Tables``."""
    nothing = tl.zeros(i.shape, tl.float32)
    lse, d_lse, share, pos_lse, d_pos_lse, d_pos_sum = nothing, nothing, nothing, nothing, nothing, nothing
    step = tl.cdiv(n, WHOLE) * WHOLE
    if slopes.d_lse is not None:
        lse = tl.load(slopes.stats + i)
        d_lse = tl.load(slopes.stats + step + i)
        share = tl.load(slopes.stats + 2 * step + i)
    if slopes.d_pos_lse is not None:
        pos_lse = tl.load(slopes.stats + 3 * step + i)
        d_pos_lse = tl.load(slopes.stats + 4 * step + i)
    if slopes.d_pos_sum is not None:
        d_pos_sum = tl.load(slopes.stats + 5 * step + i)
    return lse, d_lse, share, pos_lse, d_pos_lse, d_pos_sum


@triton.jit
def _finite(lse):
    """An empty or wholly masked set weighs nothing: 2^(-inf - 0), not 2^(-inf + inf)."""
    return tl.where(lse == MINUS_INFINITY, 0.0, lse)


@triton.jit
def weights(
    l, row_slopes, col_slopes, row, col, rows, cols, i, j, m, n, offset, negatives, positives,
    RULE: tl.constexpr, PROVEN: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """[BM, BN] d loss / d logit; ``row`` and ``col`` are what ``load_slopes`` gave."""
    if RULE == LOGISTIC:
        slope = _either(row_slopes.d_lse, col_slopes.d_lse, row[1], col[1])
        e = exp2_of_minus(l)
        share = reciprocal(1 + e)  # of l -> -inf it is 1 / inf
        found = slope * share
        if MIXED:
            of = classes(rows, cols, i, j, m, n, offset)
            found = tl.where((of & negatives) != 0, found, 0.0)
            other = tl.where(l > 0, e * share, 1 - share)  # 1 - share where no digits are lost
            found -= tl.where((of & positives) != 0, slope * other, 0.0)
        return found
    else:
        if PROVEN:  # no logit and no log-sum-exp is large: one exponential serves the row and the column
            found = tl.exp2(l) * _either(row_slopes.d_lse, col_slopes.d_lse, row[2], col[2])
        else:
            found = tl.zeros(l.shape, tl.float32)
            if row_slopes.d_lse is not None:
                found += row[1][:, None] * tl.exp2(l - row[0][:, None])
            if col_slopes.d_lse is not None:
                found += col[1][None, :] * tl.exp2(l - col[0][None, :])
        if MIXED:
            of = classes(rows, cols, i, j, m, n, offset)
            found = tl.where((of & negatives) != 0, found, 0.0)
            p = _either(row_slopes.d_pos_sum, col_slopes.d_pos_sum, row[5], col[5])
            if row_slopes.d_pos_lse is not None:
                p += row[4][:, None] * tl.exp2(l - row[3][:, None])
            if col_slopes.d_pos_lse is not None:
                p += col[4][None, :] * tl.exp2(l - col[3][None, :])
            found += tl.where((of & positives) != 0, p, 0.0)
        return found


@triton.jit
def _either(of_row, of_col, row, col):
    """row_i + col_j, [BM, BN], where the pointers say that there are such."""
    if of_row is None:
        return tl.broadcast_to(col[None, :], row.shape[0], col.shape[0])
    elif of_col is None:
        return tl.broadcast_to(row[:, None], row.shape[0], col.shape[0])
    else:
        return row[:, None] + col[None, :]
