# SPDX-License-Identifier: Apache-2.0
"""The backward sweep: weights recomputed tile by tile, and multiplied with the other side's embeddings.

``own_gradient`` keeps the gradient of its block of rows in registers while the columns stream by; called once more
with the sides exchanged it gives the columns theirs. ``store_tiles`` writes a strip of weights, or the logits
themselves, for a library's matrix product to use: the way for embeddings whose gradient does not fit in registers.
Neither shares an output between programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.block_mask import nth_piece, runs_of
from pycl.triton_kernels.logit_gradient import load_slopes, weights
from pycl.triton_kernels.logits import LOGISTIC, LOGITS, load_kept, load_unit, of_points, product, to_logits
from pycl.triton_kernels.numerics import LOG2E, MINUS_INFINITY, cast, dot
from pycl.triton_kernels.pair_classes import classes, is_plain, kind_of_tile, ranges_of_block


@triton.jit
def _sweep(
    state, x, y, kept, rows, cols, unit, row_slopes, col_slopes, row, shrink, at, begin, end, r0, d_scale, d_bias,
    m, n, d, offset, negatives, positives,
    RULE: tl.constexpr, PROVEN: tl.constexpr, MIXED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """(gradient, sum of w_ij <x_i, y_j>, sum of w_ij) of a block of rows with the visits [begin, end)."""
    gradient, of_scale, of_bias = state
    i = r0 + tl.arange(0, BM)
    piece = nth_piece(at, begin * PIECES, end, PIECES, MIXED)
    for t in tl.range(begin * PIECES, end * PIECES, num_stages=STAGES - 1 if MIXED else STAGES):
        upcoming = nth_piece(at, t + 1, end, PIECES, MIXED)
        c0 = piece * BN
        j = c0 + tl.arange(0, BN)
        col = load_slopes(col_slopes, j, n)
        products, y_block = product(x, y, kept, r0, c0, d, BM, BN, BK, True, False)
        l = to_logits(products, unit, rows, cols, i, j, m, n, LOG2E, not MIXED)
        w = weights(
            l, row_slopes, col_slopes, row, col, rows, cols, i, j, m, n, offset, negatives, positives,
            RULE, PROVEN, MIXED,
        )  # fmt: skip
        if d_scale is not None:
            of_scale += tl.sum(w * products, 1)
        if d_bias is not None:
            of_bias += tl.sum(w, 1)
        if cols.factor is not None:
            w *= of_points(cols.factor, j, n, not MIXED)[None, :]
        gradient = dot(cast(w * shrink, y_block.dtype), y_block, gradient)
        piece = upcoming
    return gradient, of_scale, of_bias


@triton.jit(
    do_not_specialize=["m", "n", "d", "planned", "first_row", "rows_here", "run", "offset", "negatives", "positives"]
)  # fmt: skip
def own_gradient(
    x, y, y_piece, rows, cols, logit_scale, row_slopes, col_slopes, visits, counts, proven, shrink,
    out, d_scale, d_bias, m, n, d, planned, first_row, rows_here, run, offset, negatives, positives,
    RULE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Row blocks from ``first_row`` on (axis 0) against runs of ``run`` of the column blocks they visit (axis 1).

    ``out`` [runs, rows_here, d] float32: the sum over the run of w_ij factor_j y_j, without the scales of the row.
    ``d_scale`` and ``d_bias`` [runs, rows_here], or None: the sums of w_ij <x_i, y_j> and of w_ij.
    """
    r0 = first_row + tl.program_id(0) * BM
    plain, mixed, begin, middle, end = runs_of(visits, counts, planned, r0 // BM, n, run, False, BM, BN)
    unit = load_unit(logit_scale, LOG2E)
    kept = load_kept(x, r0, True)
    row = load_slopes(row_slopes, r0 + tl.arange(0, BM), m)
    factor = 1.0 if shrink is None else tl.load(shrink)
    zero = tl.zeros((BM,), tl.float32)
    state = tl.zeros((BM, BK), tl.float32), zero, zero
    is_proven = True if RULE == LOGISTIC else False if proven is None else tl.load(proven) != 0
    if plain.dtype.is_ptr():  # there is a plan
        if is_proven:
            state = _sweep(
                state, x, y, kept, rows, cols, unit, row_slopes, col_slopes, row, factor, plain, begin, middle, r0,
                d_scale, d_bias, m, n, d, offset, negatives, positives, RULE, True, False, BM, BN, BK, STAGES, 1,
            )  # fmt: skip
        else:
            state = _sweep(
                state, x, y, kept, rows, cols, unit, row_slopes, col_slopes, row, factor, plain, begin, middle, r0,
                d_scale, d_bias, m, n, d, offset, negatives, positives, RULE, False, False, BM, BN, BK, STAGES, 1,
            )  # fmt: skip
    # one loop for both: two of them cost registers beside the gradient, a second exponential little beside the labels
    state = _sweep(
        state, x, y_piece, kept, rows, cols, unit, row_slopes, col_slopes, row, factor, mixed, middle, end, r0,
        d_scale, d_bias, m, n, d, offset, negatives, positives, RULE, False, True, BM, BP, BK, STAGES, BN // BP,
    )  # fmt: skip

    local = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = local < rows_here
    at = tl.program_id(1).to(tl.int64) * rows_here + local
    k = tl.arange(0, BK)
    tl.store(out + at[:, None] * d + k[None, :], state[0], mask=inside[:, None] & (k < d)[None, :])
    if d_scale is not None:
        tl.store(d_scale + at, state[1], mask=inside)
    if d_bias is not None:
        tl.store(d_bias + at, state[2], mask=inside)


@triton.jit
def _store_piece(
    x, y, rows, cols, logit_scale, row_slopes, col_slopes, shrink, out, out_stride, d_col_bias, sums,
    m, n, d, r0, c0, first_row, rows_here, offset, negatives, positives,
    RULE: tl.constexpr, PROVEN: tl.constexpr, MIXED: tl.constexpr, EMPTY: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    """The tile of ``out`` whose first pair is (r0, c0); returns ``sums`` with those of its rows."""
    of_scale, of_bias = sums
    i, j = r0 + tl.arange(0, BM), c0 + tl.arange(0, BN)
    local = i - first_row
    if EMPTY:
        w = tl.full((BM, BN), MINUS_INFINITY if RULE == LOGITS else 0.0, tl.float32)
    else:
        products, _ = product(x, y, load_kept(x, r0, RESIDENT), r0, c0, d, BM, BN, BK, RESIDENT, False)
        if RULE == LOGITS:
            w = to_logits(products, load_unit(logit_scale, 1.0), rows, cols, i, j, m, n, 1.0, not MIXED)
            if MIXED:
                w = tl.where((classes(rows, cols, i, j, m, n, offset) & negatives) != 0, w, MINUS_INFINITY)
        else:
            l = to_logits(products, load_unit(logit_scale, LOG2E), rows, cols, i, j, m, n, LOG2E, not MIXED)
            w = weights(
                l, row_slopes, col_slopes, load_slopes(row_slopes, i, m), load_slopes(col_slopes, j, n),
                rows, cols, i, j, m, n, offset, negatives, positives, RULE, PROVEN, MIXED,
            )  # fmt: skip
            of_scale += tl.sum(w * products, 1)
            of_bias += tl.sum(w, 1)
    if d_col_bias is not None:
        tl.store(d_col_bias + ((r0 - first_row) // BM).to(tl.int64) * n + j, tl.sum(w, 0), mask=j < n)
    if RULE != LOGITS:
        if rows.factor is not None:
            w *= of_points(rows.factor, i, m, not (MIXED or EMPTY))[:, None]
        if shrink is not None:
            w *= tl.load(shrink)
    at = out + local.to(tl.int64)[:, None] * out_stride + j[None, :]
    tl.store(at, cast(w, out.dtype.element_ty), mask=(local < rows_here)[:, None] & (j < n)[None, :])
    return of_scale, of_bias


@triton.jit(do_not_specialize=["m", "n", "d", "first_row", "rows_here", "offset", "negatives", "positives"])
def store_tiles(
    x, y, y_piece, rows, cols, logit_scale, row_slopes, col_slopes, proven, shrink, out, out_stride,
    d_scale, d_row_bias, d_col_bias, m, n, d, first_row, rows_here, offset, negatives, positives,
    RULE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    """One tile a program: ``out`` [rows_here, n] gets the weights times the row's factor, or with LOGITS the logits.

    ``d_scale`` and ``d_row_bias`` [column blocks, rows_here] and ``d_col_bias`` [row blocks, n], or None: the sums of
    w_ij <x_i, y_j> and of w_ij over the tile. TALL row blocks share their column blocks while these are in cache.
    """
    n_rows, n_cols = tl.cdiv(rows_here, BM), tl.cdiv(n, BN)
    group = tl.program_id(0) // (TALL * n_cols)
    tall = tl.minimum(n_rows - group * TALL, TALL)
    within = tl.program_id(0) % (TALL * n_cols)
    r0, block = first_row + (group * TALL + within % tall) * BM, within // tall
    c0 = block * BN
    row_range, col_range = ranges_of_block(rows, r0 // BM, m, BM), ranges_of_block(cols, block, n, BN)
    kind = kind_of_tile(row_range, col_range, r0, c0, offset, BM, BN)
    sums = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    if (kind & (negatives | positives)) == 0:
        sums = _store_piece(
            x, y, rows, cols, logit_scale, row_slopes, col_slopes, shrink, out, out_stride, d_col_bias, sums,
            m, n, d, r0, c0, first_row, rows_here, offset, negatives, positives,
            RULE, True, False, True, BM, BN, BK, RESIDENT,
        )  # fmt: skip
    elif not is_plain(kind, r0, c0, m, n, negatives, positives, BM, BN):
        for piece in range(0, BN // BP):
            sums = _store_piece(
                x, y_piece, rows, cols, logit_scale, row_slopes, col_slopes, shrink, out, out_stride, d_col_bias, sums,
                m, n, d, r0, c0 + piece * BP, first_row, rows_here, offset, negatives, positives,
                RULE, False, True, False, BM, BP, BK, RESIDENT,
            )  # fmt: skip
    elif True if RULE == LOGITS else False if proven is None else tl.load(proven) != 0:
        sums = _store_piece(
            x, y, rows, cols, logit_scale, row_slopes, col_slopes, shrink, out, out_stride, d_col_bias, sums,
            m, n, d, r0, c0, first_row, rows_here, offset, negatives, positives,
            RULE, True, False, False, BM, BN, BK, RESIDENT,
        )  # fmt: skip
    else:
        sums = _store_piece(
            x, y, rows, cols, logit_scale, row_slopes, col_slopes, shrink, out, out_stride, d_col_bias, sums,
            m, n, d, r0, c0, first_row, rows_here, offset, negatives, positives,
            RULE, False, False, False, BM, BN, BK, RESIDENT,
        )  # fmt: skip
    local = r0 - first_row + tl.arange(0, BM)
    if d_scale is not None:
        tl.store(d_scale + block.to(tl.int64) * rows_here + local, sums[0], mask=local < rows_here)
    if d_row_bias is not None:
        tl.store(d_row_bias + block.to(tl.int64) * rows_here + local, sums[1], mask=local < rows_here)
