# SPDX-License-Identifier: Apache-2.0
"""The backward sweep: weights recomputed tile by tile, and multiplied with the other side's embeddings.

``backward_dx_kernel`` keeps the gradient of its block of rows in registers while the columns stream by; called once
more on the transposed matrix it gives the columns theirs. ``write_weights_kernel`` writes a strip of weights, or the
logits themselves, for a library's matrix product to use: the way for embeddings whose gradient does not fit in
registers. Neither shares an output between programs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.block_mask import are_bounded, nth_block, visits_of
from pycl.triton_kernels.logit_gradient import BothGradStats, load_terms, weights_of
from pycl.triton_kernels.logits import (
    LOGITS,
    STATISTICS,
    Operands,
    TileShape,
    load_attribute,
    load_scale,
    load_x_block,
    product,
    to_logits,
)
from pycl.triton_kernels.modifiers import modified
from pycl.triton_kernels.numerics import LOG2E, MINUS_INFINITY, cast, dot
from pycl.triton_kernels.pair_classes import (
    UNSPECIALIZED,
    PairMatrix,
    classes_of_pairs,
    classes_of_tile,
    is_full,
    load_block_ranges,
)


class RowGradients(NamedTuple):
    """Where partial gradients of the rows go: pointers, or None for those nobody asked for."""

    z: Any  # float32 [splits, rows_here, d]: sums of w_ij factor_j y_j, without the scales of the row
    scale: Any  # [splits, rows_here]: sums of w_ij <x_i, y_j>
    bias: Any  # [splits, rows_here]: sums of w_ij


class Strip(NamedTuple):
    """Where the tiles of some rows go; the sums are over one tile each, or None."""

    weights: Any  # [rows_here, n]: the weights times the row's factor; with LOGITS the logits
    scale: Any  # float32 [column blocks, rows_here]: sums of w_ij <x_i, y_j>
    row_bias: Any  # [column blocks, rows_here]: sums of w_ij over columns
    col_bias: Any  # [row blocks, n]: and over rows


class _StripRows(NamedTuple):
    """A strip and the rows it is of; the kernel makes it of its arguments."""

    strip: Any
    stride: Any
    first_row: Any
    rows_here: Any


@triton.jit
def _sweep(
    state, operands, matrix, grad_stats, row, loss_scale, out, at, begin, end, r0, TILE,
    RULE: tl.constexpr, BOUNDED: tl.constexpr, PARTIAL: tl.constexpr, STAGES: tl.constexpr, PIECES: tl.constexpr,
    MODIFIERS: tl.constexpr,
):  # fmt: skip
    """(gradient, sum of w_ij <x_i, y_j>, sum of w_ij) of a block of rows with the visits [begin, end)."""
    gradient, of_scale, of_bias = state
    i = r0 + tl.arange(0, TILE.BM)
    block = nth_block(at, begin * PIECES, end, PIECES, PARTIAL)
    for t in tl.range(begin * PIECES, end * PIECES, num_stages=STAGES - 1 if PARTIAL else STAGES):
        upcoming = nth_block(at, t + 1, end, PIECES, PARTIAL)
        c0 = block * TILE.BN
        j = c0 + tl.arange(0, TILE.BN)
        col = load_terms(grad_stats.cols, j, matrix.n)
        products, y_block = product(operands, r0, c0, TILE, False)
        l = to_logits(products, operands.scale, matrix, i, j, LOG2E, not PARTIAL)
        l = modified(l, operands.modifiers, matrix, i, j, LOG2E, not PARTIAL, MODIFIERS)
        w = weights_of(l, grad_stats, row, col, matrix, i, j, RULE, BOUNDED, PARTIAL, MODIFIERS)
        if out.scale is not None:
            of_scale += tl.sum(w * products, 1)
        if out.bias is not None:
            of_bias += tl.sum(w, 1)
        if matrix.cols.factor is not None:
            w *= load_attribute(matrix.cols.factor, j, matrix.n, not PARTIAL)[None, :]
        gradient = dot(cast(w * loss_scale, y_block.dtype), y_block, gradient)
        block = upcoming
    return gradient, of_scale, of_bias


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_dx_kernel(
    x, y, y_piece, rows, cols, logit_scale, mask, modifiers, row_grad_stats, col_grad_stats, loss_scale, out,
    m, n, d, mask_start, first_row, rows_here, blocks_per_split, offset, pairs, positives,
    RULE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, MODIFIERS: tl.constexpr,
):  # fmt: skip
    """Row blocks from ``first_row`` on (axis 0) against splits of the column blocks they visit (axis 1).

    ``out`` are ``RowGradients``. Blocks hold all features.
    """
    r0 = first_row + tl.program_id(0) * BM
    matrix = PairMatrix(rows, cols, m, n, offset, pairs, positives)
    grad_stats = BothGradStats(row_grad_stats, col_grad_stats)
    full, partial, begin, middle, end = visits_of(mask, mask_start, r0 // BM, n, blocks_per_split, False, BM, BN)
    scale, x_block = load_scale(logit_scale, LOG2E), load_x_block(x, r0, True)
    row = load_terms(row_grad_stats, r0 + tl.arange(0, BM), m)
    factor = 1.0 if loss_scale is None else tl.load(loss_scale)
    zero = tl.zeros((BM,), tl.float32)
    state = tl.zeros((BM, BK), tl.float32), zero, zero
    bounded = True if RULE != STATISTICS else are_bounded(mask)
    if full.dtype.is_ptr():  # there is a block mask
        blocks = Operands(x, y, scale, x_block, d, modifiers)
        if bounded:
            state = _sweep(
                state, blocks, matrix, grad_stats, row, factor, out, full, begin, middle, r0,
                TileShape(BM, BN, BK, True), RULE, True, False, STAGES, 1, MODIFIERS,
            )  # fmt: skip
        else:
            state = _sweep(
                state, blocks, matrix, grad_stats, row, factor, out, full, begin, middle, r0,
                TileShape(BM, BN, BK, True), RULE, False, False, STAGES, 1, MODIFIERS,
            )  # fmt: skip
    # one loop for both: two of them cost registers beside the gradient, a second exponential little beside the labels
    state = _sweep(
        state, Operands(x, y_piece, scale, x_block, d, modifiers), matrix, grad_stats, row, factor, out,
        partial, middle, end, r0, TileShape(BM, BP, BK, True), RULE, False, True, STAGES, BN // BP, MODIFIERS,
    )  # fmt: skip

    local = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = local < rows_here
    at = tl.program_id(1).to(tl.int64) * rows_here + local
    k = tl.arange(0, BK)
    tl.store(out.z + at[:, None] * d + k[None, :], state[0], mask=inside[:, None] & (k < d)[None, :])
    if out.scale is not None:
        tl.store(out.scale + at, state[1], mask=inside)
    if out.bias is not None:
        tl.store(out.bias + at, state[2], mask=inside)


@triton.jit
def _write_piece(
    x, y, d, logit_scale, matrix, modifiers, grad_stats, loss_scale, out, sums, r0, c0, TILE,
    RULE: tl.constexpr, BOUNDED: tl.constexpr, PARTIAL: tl.constexpr, EMPTY: tl.constexpr, MODIFIERS: tl.constexpr,
):  # fmt: skip
    """The tile whose first pair is (r0, c0), to ``out`` (_StripRows); returns ``sums`` with those of its rows."""
    of_scale, of_bias = sums
    BM: tl.constexpr = TILE.BM
    m, n = matrix.m, matrix.n
    i, j = r0 + tl.arange(0, BM), c0 + tl.arange(0, TILE.BN)
    local = i - out.first_row
    if EMPTY:
        w = tl.full((BM, TILE.BN), MINUS_INFINITY if RULE == LOGITS else 0.0, tl.float32)
    else:
        PER_NAT: tl.constexpr = 1.0 if RULE == LOGITS else LOG2E
        operands = Operands(x, y, None, load_x_block(x, r0, TILE.ALL_FEATURES), d, modifiers)
        products, _ = product(operands, r0, c0, TILE, False)
        w = to_logits(products, load_scale(logit_scale, PER_NAT), matrix, i, j, PER_NAT, not PARTIAL)
        w = modified(w, operands.modifiers, matrix, i, j, PER_NAT, not PARTIAL, MODIFIERS)
        if RULE == LOGITS:
            if PARTIAL:
                w = tl.where((classes_of_pairs(matrix, i, j) & matrix.pairs) != 0, w, MINUS_INFINITY)
        else:
            row, col = load_terms(grad_stats.rows, i, m), load_terms(grad_stats.cols, j, n)
            w = weights_of(w, grad_stats, row, col, matrix, i, j, RULE, BOUNDED, PARTIAL, MODIFIERS)
            of_scale += tl.sum(w * products, 1)
            of_bias += tl.sum(w, 1)
    if out.strip.col_bias is not None:
        tl.store(out.strip.col_bias + ((r0 - out.first_row) // BM).to(tl.int64) * n + j, tl.sum(w, 0), mask=j < n)
    if RULE != LOGITS:
        if matrix.rows.factor is not None:
            w *= load_attribute(matrix.rows.factor, i, m, not (PARTIAL or EMPTY))[:, None]
        if loss_scale is not None:
            w *= tl.load(loss_scale)
    weights = out.strip.weights
    at = weights + local.to(tl.int64)[:, None] * out.stride + j[None, :]
    tl.store(at, cast(w, weights.dtype.element_ty), mask=(local < out.rows_here)[:, None] & (j < n)[None, :])
    return of_scale, of_bias


@triton.jit(do_not_specialize=UNSPECIALIZED)
def write_weights_kernel(
    x, y, y_piece, rows, cols, logit_scale, mask, modifiers, row_grad_stats, col_grad_stats, loss_scale, out, stride,
    m, n, d, first_row, rows_here, offset, pairs, positives,
    RULE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    ALL_FEATURES: tl.constexpr, GROUP_M: tl.constexpr, MODIFIERS: tl.constexpr,
):  # fmt: skip
    """One tile a program: see ``Strip``, whose weights have the ``stride``.

    GROUP_M row blocks share their column blocks while these are in cache. Of ``mask`` only the bound of the logits is
    read: a program finds for itself of what kind its tile is.
    """
    n_rows, n_cols = tl.cdiv(rows_here, BM), tl.cdiv(n, BN)
    group = tl.program_id(0) // (GROUP_M * n_cols)
    height = tl.minimum(n_rows - group * GROUP_M, GROUP_M)
    within = tl.program_id(0) % (GROUP_M * n_cols)
    r0, block = first_row + (group * GROUP_M + within % height) * BM, within // height
    c0 = block * BN
    matrix = PairMatrix(rows, cols, m, n, offset, pairs, positives)
    grad_stats = BothGradStats(row_grad_stats, col_grad_stats)
    row_range, col_range = load_block_ranges(rows, r0 // BM, m, BM), load_block_ranges(cols, block, n, BN)
    classes = classes_of_tile(matrix, row_range, col_range, r0, c0, BM, BN)
    strip_rows = _StripRows(out, stride, first_row, rows_here)
    sums = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    if (classes & (pairs | positives)) == 0:
        sums = _write_piece(
            x, y, d, logit_scale, matrix, modifiers, grad_stats, loss_scale, strip_rows, sums, r0, c0,
            TileShape(BM, BN, BK, ALL_FEATURES), RULE, True, False, True, MODIFIERS,
        )  # fmt: skip
    elif not is_full(matrix, classes, r0, c0, BM, BN):
        for piece in range(0, BN // BP):
            sums = _write_piece(
                x, y_piece, d, logit_scale, matrix, modifiers, grad_stats, loss_scale, strip_rows, sums, r0,
                c0 + piece * BP, TileShape(BM, BP, BK, ALL_FEATURES), RULE, False, True, False, MODIFIERS,
            )  # fmt: skip
    elif True if RULE == LOGITS else are_bounded(mask):
        sums = _write_piece(
            x, y, d, logit_scale, matrix, modifiers, grad_stats, loss_scale, strip_rows, sums, r0, c0,
            TileShape(BM, BN, BK, ALL_FEATURES), RULE, True, False, False, MODIFIERS,
        )  # fmt: skip
    else:
        sums = _write_piece(
            x, y, d, logit_scale, matrix, modifiers, grad_stats, loss_scale, strip_rows, sums, r0, c0,
            TileShape(BM, BN, BK, ALL_FEATURES), RULE, False, False, False, MODIFIERS,
        )  # fmt: skip
    local = r0 - first_row + tl.arange(0, BM)
    if out.scale is not None:
        tl.store(out.scale + block.to(tl.int64) * rows_here + local, sums[0], mask=local < rows_here)
    if out.row_bias is not None:
        tl.store(out.row_bias + block.to(tl.int64) * rows_here + local, sums[1], mask=local < rows_here)
