# SPDX-License-Identifier: Apache-2.0
"""The forward sweep: every tile of logits is reduced to sums over its rows and over its columns.

A program owns one block of rows and a split of the column blocks. Sums over rows stay in registers. Sums over columns
go out, one for each block of rows, and ``combine_partials_kernel`` adds them up in a fixed order: one writer for each
number, no atomics.

In full blocks the streaming columns are the first operand of the product. A thread then holds pairs of few columns and
many rows. It adds up a column by itself and with three other threads. Its sum over a row is a number of its own, which
no other thread sees before the last tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.block_mask import are_bounded, nth_block, visits_of
from pycl.triton_kernels.combine import STATE, add_partials, finite
from pycl.triton_kernels.logistic import add_softplus, softplus_parts
from pycl.triton_kernels.logits import (
    EXP,
    RELU,
    SOFTPLUS,
    SQUARE,
    STATISTICS,
    Operands,
    TileShape,
    load_scale,
    load_x_block,
    product,
    to_logits,
)
from pycl.triton_kernels.modifiers import may_be_dropped, modified
from pycl.triton_kernels.numerics import LN2, LOG2E, MINUS_INFINITY, joined
from pycl.triton_kernels.pair_classes import UNSPECIALIZED, PairMatrix, classes_of_pairs


class Visits(NamedTuple):
    """The visits [begin, end) of one sweep: see visits_of."""

    at: Any
    begin: Any
    end: Any
    row_block: Any


@triton.jit
def _add_tile(running_max, exp_sum, l, FOLD: tl.constexpr, BOUNDED: tl.constexpr):
    """The rows' (running_max, exp_sum) with a tile of logits, and (largest, exp_sum) of its columns.

    BOUNDED logits need no maximum and one exponential serves the row and the column.
    """
    AXIS: tl.constexpr = 2 if FOLD else 1
    if BOUNDED:
        e = tl.exp2(l)
        of_cols = tl.sum(e, 0)
        return running_max, exp_sum + tl.sum(_folded(e, FOLD), AXIS), tl.zeros_like(of_cols), of_cols
    else:
        folded = _folded(l, FOLD)
        new_max = tl.maximum(running_max, tl.max(folded, AXIS))
        shift = finite(new_max)
        exp_sum = exp_sum * tl.exp2(running_max - shift) + tl.sum(tl.exp2(folded - tl.expand_dims(shift, AXIS)), AXIS)
        col_max = tl.max(l, 0)
        return new_max, exp_sum, col_max, tl.sum(tl.exp2(l - finite(col_max)[None, :]), 0)


@triton.jit
def _folded(l, FOLD: tl.constexpr):
    """[BM, BN] as [BM, BN / 8 FOLD, FOLD, 8]: along the third axis are columns that one thread has of a row."""
    if FOLD:
        return tl.reshape(l, (l.shape[0], l.shape[1] // (8 * FOLD), FOLD, 8))
    else:
        return l


@triton.jit
def _value(l, RULE: tl.constexpr):
    """A map of logits in units of log 2."""
    if RULE == RELU:
        return tl.maximum(l, 0.0, propagate_nan=tl.PropagateNan.ALL) * LN2
    elif RULE == EXP:
        return tl.exp2(l)
    else:
        tl.static_assert(RULE == SQUARE)
        return l * LN2 * (l * LN2)


@triton.jit
def _add_terms(sums, l, matrix, i, j, RULE: tl.constexpr, PARTIAL: tl.constexpr):
    """``sums`` [BM, 4] of a map of all pairs with those of a tile."""
    BM: tl.constexpr = l.shape[0]
    BN: tl.constexpr = l.shape[1]
    if RULE == SOFTPLUS:
        straight, e = _losses(l, matrix, i, j, PARTIAL)
        return add_softplus(sums, straight, e, BM, BN)
    else:
        terms = _value(l, RULE)
        if PARTIAL:
            small, large = _members(l, matrix, i, j)
            terms = tl.where(small, terms, 0.0) + tl.where(large, _value(-l, RULE), 0.0)
        elif RULE == SQUARE:
            terms = tl.where(l == MINUS_INFINITY, 0.0, terms)
        return sums + tl.sum(tl.reshape(terms, (BM, BN // 4, 4)), 1)


@triton.jit
def _members(l, matrix, i, j):
    """Which pairs are in the first set, and which are positives; a logit of -inf is a pair that was dropped."""
    classes, kept = classes_of_pairs(matrix, i, j), l != MINUS_INFINITY
    return ((classes & matrix.pairs) != 0) & kept, ((classes & matrix.positives) != 0) & kept


@triton.jit
def _losses(l, matrix, i, j, PARTIAL: tl.constexpr):
    """Of every pair the two parts that ``add_softplus`` adds: of l in the first pair set, of -l in the positives."""
    straight, e = softplus_parts(l)
    if PARTIAL:
        small, large = _members(l, matrix, i, j)
        straight = tl.where(small, straight, 0.0) + tl.where(large, tl.maximum(-l, 0.0), 0.0)
        e = joined(tl.where(small, e, 0.0), tl.where(large, e, 0.0))
    return straight, e


@triton.jit
def _sweep(
    state, operands, matrix, partials, visits, TILE, RULE: tl.constexpr, SYMMETRIC: tl.constexpr,
    BOUNDED: tl.constexpr, PARTIAL: tl.constexpr, STAGES: tl.constexpr, PIECES: tl.constexpr, FOLD: tl.constexpr,
    MODIFIERS: tl.constexpr,
):  # fmt: skip
    """The state of a block of rows with some visits: straight code, as the compiler's pipeline wants it."""
    TRANSPOSED: tl.constexpr = RULE == STATISTICS and not PARTIAL
    BM: tl.constexpr = TILE.BM
    BN: tl.constexpr = TILE.BN
    running_max, exp_sum, pos_max, pos_exp_sum, pos_sum, pos_count = state
    if RULE != STATISTICS:  # sums of a thread's own until the end
        sums = tl.zeros((BM, 4), tl.float32)
    elif TRANSPOSED:
        sums = tl.zeros((BM, BN // (8 * FOLD), 8), tl.float32)
        maxima = sums + (0.0 if BOUNDED else MINUS_INFINITY)
    n, end = matrix.n, visits.end
    r0 = visits.row_block * BM
    i = r0 + tl.arange(0, BM)
    block = nth_block(visits.at, visits.begin * PIECES, end, PIECES, PARTIAL)
    for t in tl.range(visits.begin * PIECES, end * PIECES, num_stages=STAGES - 1 if PARTIAL else STAGES):
        upcoming = nth_block(visits.at, t + 1, end, PIECES, PARTIAL)  # the copy of a block waits for its number
        c0 = block * BN
        j = c0 + tl.arange(0, BN)
        products, _ = product(operands, r0, c0, TILE, TRANSPOSED)
        l = to_logits(products, operands.scale, matrix, i, j, LOG2E, not PARTIAL)
        l = modified(l, operands.modifiers, matrix, i, j, LOG2E, not PARTIAL, MODIFIERS)
        if RULE != STATISTICS:
            sums = _add_terms(sums, l, matrix, i, j, RULE, PARTIAL)
        else:
            at = tl.program_id(0).to(tl.int64) * n + j
            write = j < n
            if SYMMETRIC:  # both triangles of the square on the diagonal are in its rows
                write &= j >= r0 + BM
            if PARTIAL:
                classes = classes_of_pairs(matrix, i, j)
                chosen = (classes & matrix.positives) != 0
                if may_be_dropped(matrix, MODIFIERS):
                    chosen &= l != MINUS_INFINITY
                pos_max, pos_exp_sum, pos_col_max, pos_col_exp_sum = _add_tile(
                    pos_max, pos_exp_sum, tl.where(chosen, l, MINUS_INFINITY), 0, BOUNDED
                )
                p = tl.where(chosen, l, 0.0)
                # ones made of the logits lie where these do; of others the compiler would look at every label again
                count = tl.where(chosen, (l.to(tl.int32, bitcast=True) | 1) & 1, 0).to(tl.float32)
                pos_sum += tl.sum(p, 1)
                pos_count += tl.sum(count, 1)
                if partials.pos_cols is not None:
                    to = partials.pos_cols + (tl.program_id(0).to(tl.int64) * 3 * n + at)
                    tl.store(to, pos_col_max, mask=write)
                    tl.store(to + n, pos_col_exp_sum, mask=write)
                    tl.store(to + 2 * n, tl.sum(p, 0), mask=write)
                    tl.store(to + 3 * n, tl.sum(count, 0), mask=write)
                l = tl.where((classes & matrix.pairs) != 0, l, MINUS_INFINITY)
            if TRANSPOSED:
                maxima, sums, col_max, col_exp_sum = _add_tile(maxima, sums, l, FOLD, BOUNDED)
            else:
                running_max, exp_sum, col_max, col_exp_sum = _add_tile(running_max, exp_sum, l, 0, BOUNDED)
            if partials.cols is not None:
                to = partials.cols + (tl.program_id(0).to(tl.int64) * n + at)
                tl.store(to, col_max, mask=write)
                tl.store(to + n, col_exp_sum, mask=write)
        block = upcoming
    if RULE != STATISTICS:
        exp_sum += tl.sum(sums, 1)
    elif TRANSPOSED:
        WIDTH: tl.constexpr = BN // FOLD
        running_max, exp_sum = add_partials(
            running_max, exp_sum, tl.reshape(maxima, (BM, WIDTH)).T, tl.reshape(sums, (BM, WIDTH)).T
        )
    return running_max, exp_sum, pos_max, pos_exp_sum, pos_sum, pos_count


@triton.jit
def _visit(
    state, blocks, pieces, matrix, partials, visits, row_block, TILE, PIECE, RULE: tl.constexpr,
    SYMMETRIC: tl.constexpr, BOUNDED: tl.constexpr, STAGES: tl.constexpr, FOLD: tl.constexpr,
    MODIFIERS: tl.constexpr,
):  # fmt: skip
    """The state with all visits of a program: the full blocks, then the partial ones in pieces."""
    full, partial, begin, middle, end = visits
    if full.dtype.is_ptr():  # there is a block mask
        state = _sweep(
            state, blocks, matrix, partials, Visits(full, begin, middle, row_block), TILE,
            RULE, SYMMETRIC, BOUNDED, False, STAGES, 1, FOLD, MODIFIERS,
        )  # fmt: skip
    return _sweep(
        state, pieces, matrix, partials, Visits(partial, middle, end, row_block), PIECE,
        RULE, SYMMETRIC, BOUNDED, True, STAGES, TILE.BN // PIECE.BN, FOLD, MODIFIERS,
    )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    x, y, y_piece, rows, cols, logit_scale, mask, modifiers, partials,
    m, n, d, mask_start, first_row, rows_here, blocks_per_split, offset, pairs, positives,
    RULE: tl.constexpr, SYMMETRIC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, ALL_FEATURES: tl.constexpr,
    STAGES: tl.constexpr, FOLD: tl.constexpr, MODIFIERS: tl.constexpr,
):  # fmt: skip
    """Row blocks from ``first_row`` on (axis 0) against splits of the column blocks they visit (axis 1).

    ``partials`` get those of the blocks visited, in ``pos_cols`` of the partial blocks alone. FOLD: how many columns a
    thread has of every eighth, where they are the first operand.
    """
    r0 = first_row + tl.program_id(0) * BM
    row_block = r0 // BM
    matrix = PairMatrix(rows, cols, m, n, offset, pairs, positives)
    visits = visits_of(mask, mask_start, row_block, n, blocks_per_split, SYMMETRIC, BM, BN)
    scale = load_scale(logit_scale, LOG2E)
    x_block = load_x_block(x, r0, ALL_FEATURES)
    blocks = Operands(x, y, scale, x_block, d, modifiers)
    pieces = Operands(x, y_piece, scale, x_block, d, modifiers)
    zero, none = tl.zeros((BM,), tl.float32), tl.full((BM,), MINUS_INFINITY, tl.float32)

    bounded = True if RULE != STATISTICS else are_bounded(mask)
    if bounded:
        state = _visit(
            (zero, zero, zero, zero, zero, zero), blocks, pieces, matrix, partials, visits, row_block,
            TileShape(BM, BN, BK, ALL_FEATURES), TileShape(BM, BP, BK, ALL_FEATURES),
            RULE, SYMMETRIC, True, STAGES, FOLD, MODIFIERS,
        )  # fmt: skip
    else:
        state = _visit(
            (none, zero, none, zero, zero, zero), blocks, pieces, matrix, partials, visits, row_block,
            TileShape(BM, BN, BK, ALL_FEATURES), TileShape(BM, BP, BK, ALL_FEATURES),
            RULE, SYMMETRIC, False, STAGES, FOLD, MODIFIERS,
        )  # fmt: skip

    local = tl.program_id(0) * BM + tl.arange(0, BM)
    fields = 1 if RULE != STATISTICS else STATE
    at = partials.rows + (tl.program_id(1).to(tl.int64) * fields) * rows_here + local
    inside = local < rows_here
    if RULE != STATISTICS:
        tl.store(at, state[1], mask=inside)
    else:
        for field in tl.static_range(STATE):
            tl.store(at + field * rows_here, state[field], mask=inside)
