# SPDX-License-Identifier: Apache-2.0
"""The weight of every pair: the derivative of the loss with respect to its logit, from what the forward left behind.

All parts of a weight are added in float32 before anything is cast. Near the optimum the gradient is the difference
between a positive's share of the softmax and its own weight: this difference keeps its digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.logits import RELU, SOFTPLUS, STATISTICS
from pycl.triton_kernels.modifiers import may_be_dropped
from pycl.triton_kernels.numerics import MINUS_INFINITY, exp2_of_minus, reciprocal
from pycl.triton_kernels.pair_classes import classes_of_pairs

FP16_TOP_EXPONENT, SMALLEST = tl.constexpr(14.0), tl.constexpr(1e-30)
TABLE_ROWS = tl.constexpr(6)
TABLE_BLOCK = tl.constexpr(256)  # points; every side of a tile divides it


class GradStats(NamedTuple):
    """Gradients of one side's statistics: pointers, or None for those the loss does not depend on."""

    stats: Any  # float32 [6, n], whose last two rows are log-sum-exps in units of log 2; a sweep has a table here
    d_lse: Any  # float32 [n]; of a sum, its derivative
    d_pos_lse: Any
    d_pos_sum: Any


class BothGradStats(NamedTuple):
    rows: Any  # GradStats
    cols: Any


class WeightTables(NamedTuple):
    """The gradients of statistics as a sweep reads them, in place of ``stats``: [TABLE_ROWS, n rounded up], or None.

    A row each: lse, d lse, d lse 2^-lse, pos_lse, d pos_lse, d pos_sum. Those that the loss does not depend on are not
    written. Points are rounded up to a multiple of TABLE_BLOCK. Beyond the last point there are zeros: the sweeps'
    loops compute nothing of such a column, and compare no index to load it.
    """

    rows: Any
    cols: Any
    loss_scale: Any  # [1]: the power of two that takes the largest possible weight to the top of float16; or None


class Terms(NamedTuple):
    """A block of points' rows of a table."""

    lse: Any
    d_lse: Any
    share: Any  # d lse 2^-lse
    pos_lse: Any
    d_pos_lse: Any
    d_pos_sum: Any


@triton.jit
def tabulate(grad_stats, tables, block, factor, m, n, CHUNK: tl.constexpr):
    """A TABLE_BLOCK of points of both sides, and in the first block the loss scale."""
    rows, cols = grad_stats.rows, grad_stats.cols
    _tabulate(rows, tables.rows, block, m)
    _tabulate(cols, tables.cols, block, n)
    if tables.loss_scale is not None:
        if block == 0:
            bound = _largest(rows.d_lse, m, CHUNK) + _largest(rows.d_pos_lse, m, CHUNK)
            bound += _largest(rows.d_pos_sum, m, CHUNK) + _largest(cols.d_lse, n, CHUNK)
            bound += _largest(cols.d_pos_lse, n, CHUNK) + _largest(cols.d_pos_sum, n, CHUNK)
            if factor is not None:
                bound *= tl.maximum(_largest(factor, m, CHUNK), 1.0)
            exponent = (-tl.log2(tl.maximum(bound, SMALLEST)) + FP16_TOP_EXPONENT).to(tl.int32)
            tl.store(tables.loss_scale, tl.exp2(exponent.to(tl.float32)))


@triton.jit
def _tabulate(grads, table, block, n):
    if table is not None:
        i = block * TABLE_BLOCK + tl.arange(0, TABLE_BLOCK)
        step = tl.cdiv(n, TABLE_BLOCK) * TABLE_BLOCK
        inside, written = i < n, i < step
        if grads.d_lse is not None:
            d_lse, lse = tl.load(grads.d_lse + i, mask=inside, other=0.0), tl.zeros((TABLE_BLOCK,), tl.float32)
            if grads.stats is not None:
                lse = _finite(tl.load(grads.stats + 4 * n + i, mask=inside, other=0.0))
            tl.store(table + i, lse, mask=written)
            tl.store(table + step + i, d_lse, mask=written)
            tl.store(table + 2 * step + i, d_lse * tl.exp2(-lse), mask=written)
        if grads.d_pos_lse is not None:
            pos_lse = _finite(tl.load(grads.stats + 5 * n + i, mask=inside, other=0.0))
            tl.store(table + 3 * step + i, pos_lse, mask=written)
            tl.store(table + 4 * step + i, tl.load(grads.d_pos_lse + i, mask=inside, other=0.0), mask=written)
        if grads.d_pos_sum is not None:
            tl.store(table + 5 * step + i, tl.load(grads.d_pos_sum + i, mask=inside, other=0.0), mask=written)


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
def load_terms(grads, i, n):
    """Those of a block of points, zeros where the loss does not depend on a statistic."""
    nothing = tl.zeros(i.shape, tl.float32)
    lse, d_lse, share, pos_lse, d_pos_lse, d_pos_sum = nothing, nothing, nothing, nothing, nothing, nothing
    step = tl.cdiv(n, TABLE_BLOCK) * TABLE_BLOCK
    if grads.d_lse is not None:
        lse = tl.load(grads.stats + i)
        d_lse = tl.load(grads.stats + step + i)
        share = tl.load(grads.stats + 2 * step + i)
    if grads.d_pos_lse is not None:
        pos_lse = tl.load(grads.stats + 3 * step + i)
        d_pos_lse = tl.load(grads.stats + 4 * step + i)
    if grads.d_pos_sum is not None:
        d_pos_sum = tl.load(grads.stats + 5 * step + i)
    return Terms(lse, d_lse, share, pos_lse, d_pos_lse, d_pos_sum)


@triton.jit
def _finite(lse):
    """An empty or wholly masked set weighs nothing: 2^(-inf - 0), not 2^(-inf + inf)."""
    return tl.where(lse == MINUS_INFINITY, 0.0, lse)


@triton.jit
def weights_of(
    l, grad_stats, row, col, matrix, i, j,
    RULE: tl.constexpr, BOUNDED: tl.constexpr, PARTIAL: tl.constexpr, MODIFIERS: tl.constexpr,
):  # fmt: skip
    """[BM, BN] d loss / d logit; ``row`` and ``col`` are the ``Terms`` of the points."""
    rows, cols = grad_stats.rows, grad_stats.cols
    if RULE == RELU:
        slope = _sum_of_sides(rows.d_lse, cols.d_lse, row.d_lse, col.d_lse)
        found = tl.where(l != l, l, tl.where(l > 0, slope, 0.0))
        if PARTIAL:
            classes = classes_of_pairs(matrix, i, j)
            found = tl.where((classes & matrix.pairs) != 0, found, 0.0)
            other = tl.where(l != l, l, tl.where((l < 0) & (l != MINUS_INFINITY), slope, 0.0))
            found -= tl.where((classes & matrix.positives) != 0, other, 0.0)
        return found
    elif RULE == SOFTPLUS:
        slope = _sum_of_sides(rows.d_lse, cols.d_lse, row.d_lse, col.d_lse)
        e = exp2_of_minus(l)
        share = reciprocal(1 + e)  # of l -> -inf it is 1 / inf
        found = slope * share
        if PARTIAL:
            classes = classes_of_pairs(matrix, i, j)
            found = tl.where((classes & matrix.pairs) != 0, found, 0.0)
            other = tl.where(l > 0, e * share, 1 - share)  # 1 - share where no digits are lost
            large = ((classes & matrix.positives) != 0) & (l != MINUS_INFINITY)
            found -= tl.where(large, slope * other, 0.0)
        return found
    else:
        tl.static_assert(RULE == STATISTICS)
        if BOUNDED:  # no logit and no log-sum-exp is large: one exponential serves the row and the column
            found = tl.exp2(l) * _sum_of_sides(rows.d_lse, cols.d_lse, row.share, col.share)
        else:
            found = tl.zeros(l.shape, tl.float32)
            if rows.d_lse is not None:
                found += row.d_lse[:, None] * tl.exp2(l - row.lse[:, None])
            if cols.d_lse is not None:
                found += col.d_lse[None, :] * tl.exp2(l - col.lse[None, :])
        if PARTIAL:
            classes = classes_of_pairs(matrix, i, j)
            found = tl.where((classes & matrix.pairs) != 0, found, 0.0)
            p = _sum_of_sides(rows.d_pos_sum, cols.d_pos_sum, row.d_pos_sum, col.d_pos_sum)
            if rows.d_pos_lse is not None:
                p += row.d_pos_lse[:, None] * tl.exp2(l - row.pos_lse[:, None])
            if cols.d_pos_lse is not None:
                p += col.d_pos_lse[None, :] * tl.exp2(l - col.pos_lse[None, :])
            chosen = (classes & matrix.positives) != 0
            if may_be_dropped(matrix, MODIFIERS):
                chosen &= l != MINUS_INFINITY
            found += tl.where(chosen, p, 0.0)
        return found


@triton.jit
def _sum_of_sides(of_row, of_col, row, col):
    """row_i + col_j, [BM, BN], where the pointers say that there are such."""
    if of_row is None:
        return tl.broadcast_to(col[None, :], row.shape[0], col.shape[0])
    elif of_col is None:
        return tl.broadcast_to(row[:, None], row.shape[0], col.shape[0])
    else:
        return row[:, None] + col[None, :]
