# SPDX-License-Identifier: Apache-2.0
"""The forward sweep: every tile of logits is reduced to sums over its rows and over its columns.

A program owns one block of rows and a run of column blocks. Sums over rows stay in registers; sums over columns go
out, one for each block of rows, and ``merge`` adds them up in a fixed order: one writer for each number, no atomics.

Where no pair has to be looked at, the streaming columns are the first operand of the product. Then a thread holds
pairs of few columns and many rows: it adds up a column by itself and with three other threads, and what it has of a
row it adds to a number of its own, which no other thread sees before the last tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.block_mask import nth_piece, runs_of
from pycl.triton_kernels.combine import STATE, add_parts, finite
from pycl.triton_kernels.logistic import add_losses, losses
from pycl.triton_kernels.logits import LOGISTIC, load_kept, load_unit, product, to_logits
from pycl.triton_kernels.numerics import LOG2E, MINUS_INFINITY, joined
from pycl.triton_kernels.pair_classes import classes


@triton.jit
def _add_tile(shift, total, l, FOLD: tl.constexpr, PROVEN: tl.constexpr):
    """The rows' (shift, total) with a tile of logits, and (shift, total) of its columns.

    PROVEN to be small, logits need no shift and one exponential serves the row and the column.
    """
    AXIS: tl.constexpr = 2 if FOLD else 1
    if PROVEN:
        e = tl.exp2(l)
        of_cols = tl.sum(e, 0)
        return shift, total + tl.sum(_folded(e, FOLD), AXIS), tl.zeros_like(of_cols), of_cols
    else:
        folded = _folded(l, FOLD)
        new = tl.maximum(shift, tl.max(folded, AXIS))
        kept = finite(new)
        total = total * tl.exp2(shift - kept) + tl.sum(tl.exp2(folded - tl.expand_dims(kept, AXIS)), AXIS)
        col_shift = tl.max(l, 0)
        return new, total, col_shift, tl.sum(tl.exp2(l - finite(col_shift)[None, :]), 0)


@triton.jit
def _folded(l, FOLD: tl.constexpr):
    """[BM, BN] as [BM, BN / 8 FOLD, FOLD, 8]: along the third axis are columns that one thread has of a row."""
    if FOLD:
        return tl.reshape(l, (l.shape[0], l.shape[1] // (8 * FOLD), FOLD, 8))
    else:
        return l


@triton.jit
def _sweep(
    state, x, y, kept, rows, cols, unit, at, begin, end, row_block, den_parts, pos_parts,
    m, n, d, offset, negatives, positives,
    RULE: tl.constexpr, SYMMETRIC: tl.constexpr, PROVEN: tl.constexpr, MIXED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
    STAGES: tl.constexpr, PIECES: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """The state of a block of rows with the visits [begin, end): straight code, as the compiler's pipeline wants it."""
    APART: tl.constexpr = RULE != LOGISTIC and not MIXED
    shift, total, pos_shift, pos_total, pos_sum, pos_count = state
    if RULE == LOGISTIC:  # sums of a thread's own until the end
        parts = tl.zeros((BM, 4), tl.float32)
    elif APART:
        parts = tl.zeros((BM, BN // (8 * FOLD), 8), tl.float32)
        shifts = parts + (0.0 if PROVEN else MINUS_INFINITY)
    r0 = row_block * BM
    i = r0 + tl.arange(0, BM)
    piece = nth_piece(at, begin * PIECES, end, PIECES, MIXED)
    for t in tl.range(begin * PIECES, end * PIECES, num_stages=STAGES - 1 if MIXED else STAGES):
        upcoming = nth_piece(at, t + 1, end, PIECES, MIXED)  # a step ahead: the copy of a block waits for its number
        c0 = piece * BN
        j = c0 + tl.arange(0, BN)
        products, _ = product(x, y, kept, r0, c0, d, BM, BN, BK, RESIDENT, APART)
        l = to_logits(products, unit, rows, cols, i, j, m, n, LOG2E, not MIXED)
        if RULE == LOGISTIC:
            straight, e = losses(l)
            if MIXED:
                found = classes(rows, cols, i, j, m, n, offset)
                small, large = (found & negatives) != 0, (found & positives) != 0
                straight = tl.where(small, straight, 0.0) + tl.where(large, tl.maximum(-l, 0.0), 0.0)
                e = joined(tl.where(small, e, 0.0), tl.where(large, e, 0.0))
            parts = add_losses(parts, straight, e, BM, BN)
        else:
            out = tl.program_id(0).to(tl.int64) * n + j
            write = j < n
            if SYMMETRIC:  # both triangles of the square on the diagonal are in its rows
                write &= j >= r0 + BM
            if MIXED:
                found = classes(rows, cols, i, j, m, n, offset)
                chosen = (found & positives) != 0
                pos_shift, pos_total, of_shift, of_total = _add_tile(
                    pos_shift, pos_total, tl.where(chosen, l, MINUS_INFINITY), 0, PROVEN
                )
                p = tl.where(chosen, l, 0.0)
                # ones made of the logits lie where these do; of others the compiler would look at every label again
                count = tl.where(chosen, (l.to(tl.int32, bitcast=True) | 1) & 1, 0).to(tl.float32)
                pos_sum += tl.sum(p, 1)
                pos_count += tl.sum(count, 1)
                if pos_parts is not None:
                    part = tl.program_id(0).to(tl.int64) * 3 * n + out
                    tl.store(pos_parts + part, of_shift, mask=write)
                    tl.store(pos_parts + part + n, of_total, mask=write)
                    tl.store(pos_parts + part + 2 * n, tl.sum(p, 0), mask=write)
                    tl.store(pos_parts + part + 3 * n, tl.sum(count, 0), mask=write)
                l = tl.where((found & negatives) != 0, l, MINUS_INFINITY)
            if APART:
                shifts, parts, of_shift, of_total = _add_tile(shifts, parts, l, FOLD, PROVEN)
            else:
                shift, total, of_shift, of_total = _add_tile(shift, total, l, 0, PROVEN)
            if den_parts is not None:
                part = tl.program_id(0).to(tl.int64) * n + out
                tl.store(den_parts + part, of_shift, mask=write)
                tl.store(den_parts + part + n, of_total, mask=write)
        piece = upcoming
    if RULE == LOGISTIC:
        total += tl.sum(parts, 1)
    elif APART:
        width: tl.constexpr = BN // FOLD
        shift, total = add_parts(shift, total, tl.reshape(shifts, (BM, width)).T, tl.reshape(parts, (BM, width)).T)
    return shift, total, pos_shift, pos_total, pos_sum, pos_count


@triton.jit
def _visit(
    state, x, y, y_piece, kept, rows, cols, unit, run, row_block, den_parts, pos_parts,
    m, n, d, offset, negatives, positives,
    RULE: tl.constexpr, SYMMETRIC: tl.constexpr, PROVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
    STAGES: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    plain, mixed, begin, middle, end = run
    if plain.dtype.is_ptr():  # there is a plan
        state = _sweep(
            state, x, y, kept, rows, cols, unit, plain, begin, middle, row_block, den_parts, pos_parts,
            m, n, d, offset, negatives, positives,
            RULE, SYMMETRIC, PROVEN, False, BM, BN, BK, RESIDENT, STAGES, 1, FOLD,
        )  # fmt: skip
    return _sweep(
        state, x, y_piece, kept, rows, cols, unit, mixed, middle, end, row_block, den_parts, pos_parts,
        m, n, d, offset, negatives, positives, RULE, SYMMETRIC, PROVEN, True, BM, BP, BK, RESIDENT, STAGES,
        BN // BP, FOLD,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["m", "n", "d", "planned", "first_row", "rows_here", "run", "offset", "negatives", "positives"]
)  # fmt: skip
def reduce_tiles(
    x, y, y_piece, rows, cols, logit_scale, visits, counts, proven, row_parts, den_parts, pos_parts,
    m, n, d, planned, first_row, rows_here, run, offset, negatives, positives,
    RULE: tl.constexpr, SYMMETRIC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
    STAGES: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Row blocks from ``first_row`` on (axis 0) against runs of ``run`` of the column blocks they visit (axis 1).

    ``row_parts`` [runs, STATE, rows_here], with LOGISTIC [runs, rows_here]. ``den_parts`` [row blocks, 2, n] and
    ``pos_parts`` [row blocks, 4, n] get those of the tiles visited and of the mixed ones; None where columns have no
    statistics. The logits of ``negatives`` are those of the denominator, or those that should be small. FOLD: how many
    columns a thread has of every eighth, where they are the first operand.
    """
    r0 = first_row + tl.program_id(0) * BM
    row_block = r0 // BM
    run_here = runs_of(visits, counts, planned, row_block, n, run, SYMMETRIC, BM, BN)
    unit = load_unit(logit_scale, LOG2E)
    kept = load_kept(x, r0, RESIDENT)
    zero, none = tl.zeros((BM,), tl.float32), tl.full((BM,), MINUS_INFINITY, tl.float32)

    is_proven = True if RULE == LOGISTIC else False if proven is None else tl.load(proven) != 0
    if is_proven:
        state = _visit(
            (zero, zero, zero, zero, zero, zero), x, y, y_piece, kept, rows, cols, unit, run_here, row_block,
            den_parts, pos_parts, m, n, d, offset, negatives, positives,
            RULE, SYMMETRIC, True, BM, BN, BP, BK, RESIDENT, STAGES, FOLD,
        )  # fmt: skip
    else:
        state = _visit(
            (none, zero, none, zero, zero, zero), x, y, y_piece, kept, rows, cols, unit, run_here, row_block,
            den_parts, pos_parts, m, n, d, offset, negatives, positives,
            RULE, SYMMETRIC, False, BM, BN, BP, BK, RESIDENT, STAGES, FOLD,
        )  # fmt: skip

    local = tl.program_id(0) * BM + tl.arange(0, BM)
    fields = 1 if RULE == LOGISTIC else STATE
    at = row_parts + (tl.program_id(1).to(tl.int64) * fields) * rows_here + local
    inside = local < rows_here
    if RULE == LOGISTIC:
        tl.store(at, state[1], mask=inside)
    else:
        for field in tl.static_range(STATE):
            tl.store(at + field * rows_here, state[field], mask=inside)
