# SPDX-License-Identifier: Apache-2.0
"""The partial sums that the programs of a forward sweep leave, added up in a fixed order."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import LN2, MINUS_INFINITY
from pycl.triton_kernels.pair_classes import (
    LABEL_GROUP,
    UNSPECIALIZED,
    PairMatrix,
    classes_of_tile,
    is_full,
    load_block_ranges,
    load_ranges,
)

# A log-sum-exp on its way is (running maximum, sum of 2^(l - maximum)). A point's state: that of the first pair set,
# that of the positives, the sum of its positive logits, their number.
STATE = tl.constexpr(6)


class Partials(NamedTuple):
    """Sums over the tiles of one program each, float32; None for columns that have no statistics."""

    rows: Any  # [splits, STATE, rows_here]; of sums of a map [splits, rows_here]
    cols: Any  # [row blocks, 2, n], of the first pair set
    pos_cols: Any  # [row blocks, 4, n], of the positives


class Window(NamedTuple):
    """The rows of one forward sweep, and in how many splits it went through their columns."""

    first_row: Any
    rows_here: Any
    n_splits: Any


@triton.jit
def finite(maximum):
    return tl.where(maximum == MINUS_INFINITY, 0.0, maximum)


@triton.jit
def add_partials(running_max, exp_sum, maxima, exp_sums):
    """(running_max, exp_sum) with [partials, B] others."""
    new_max = tl.maximum(running_max, tl.max(maxima, 0))
    shift = finite(new_max)
    others = tl.sum(exp_sums * tl.exp2(maxima - shift[None, :]), 0)
    return new_max, exp_sum * tl.exp2(running_max - shift) + others


@triton.jit(do_not_specialize=UNSPECIALIZED)
def combine_partials_kernel(
    row_stats, col_stats, rows, cols, partials,
    m, n, first_row, rows_here, n_splits, offset, pairs, positives,
    SYMMETRIC: tl.constexpr, MASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Add the partials of a sweep over the rows [first_row, first_row + rows_here), BN points a program.

    To ``row_stats`` [STATE, m], and in the programs behind the rows' to ``col_stats`` [STATE, n] or None; if SYMMETRIC
    points are both, those before the rows have had everything. MASKED: the sweep had a block mask.
    """
    matrix, window = PairMatrix(rows, cols, m, n, offset, pairs, positives), Window(first_row, rows_here, n_splits)
    program, first_block, end = tl.program_id(0), first_row // BN, first_row + rows_here
    if SYMMETRIC:
        _combine(
            row_stats, n, partials, matrix, window, first_block + program, first_row > 0, end,
            SYMMETRIC, MASKED, BM, BN, PARTIALS,
        )  # fmt: skip
    else:
        row_blocks = tl.cdiv(rows_here, BN)
        if program < row_blocks:
            _combine(
                row_stats, m, Partials(partials.rows, None, None), matrix, window, first_block + program, False, end,
                SYMMETRIC, MASKED, BM, BN, PARTIALS,
            )  # fmt: skip
        elif col_stats is not None:
            _combine(
                col_stats, n, Partials(None, partials.cols, partials.pos_cols), matrix, window, program - row_blocks,
                first_row > 0, tl.where(end == m, n, 0),
                SYMMETRIC, MASKED, BM, BN, PARTIALS,
            )  # fmt: skip


@triton.jit
def _combine(
    stats, n, partials, matrix, window, block, begun, final,
    SYMMETRIC: tl.constexpr, MASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Add up what there is for the points of a block: into ``stats`` [STATE, n], which hold something if ``begun``.

    Points before ``final`` have got everything: their state becomes (lse, pos_lse, pos_sum, pos_count) in nats, then
    both log-sum-exps in units of log 2. ``partials.rows`` are of the points themselves, the others of the points as
    columns.
    """
    j = block * BN + tl.arange(0, BN)
    known = j < tl.where(begun, n, 0)
    at = stats + j
    # at the addresses of the stores below: at others a symmetric problem takes 168 registers, not 152 (Triton 3.7.1)
    running_max = tl.load(at, mask=known, other=MINUS_INFINITY)
    exp_sum = tl.load(at + n, mask=known, other=0.0)
    pos_max = tl.load(at + 2 * n, mask=known, other=MINUS_INFINITY)
    pos_exp_sum = tl.load(at + 3 * n, mask=known, other=0.0)
    pos_sum = tl.load(at + 4 * n, mask=known, other=0.0)
    pos_count = tl.load(at + 5 * n, mask=known, other=0.0)

    first_row, rows_here = window.first_row, window.rows_here
    if partials.rows is not None:
        local = j - first_row
        own = (local >= 0) & (local < rows_here)
        for start in range(0, window.n_splits, PARTIALS):
            p = start + tl.arange(0, PARTIALS)
            here = (p < window.n_splits)[:, None] & own[None, :]
            of = partials.rows + p.to(tl.int64)[:, None] * STATE * rows_here + local[None, :]
            maxima, exp_sums = _load_pair(of, rows_here, here)
            running_max, exp_sum = add_partials(running_max, exp_sum, maxima, exp_sums)
            maxima, exp_sums = _load_pair(of + 2 * rows_here, rows_here, here)
            pos_max, pos_exp_sum = add_partials(pos_max, pos_exp_sum, maxima, exp_sums)
            pos_sum += tl.sum(tl.load(of + 4 * rows_here, mask=here, other=0.0), 0)
            pos_count += tl.sum(tl.load(of + 5 * rows_here, mask=here, other=0.0), 0)
    if partials.cols is not None:
        col_range = load_block_ranges(matrix.cols, block, n, BN)
        n_partials = tl.cdiv(rows_here, BM)
        for start in range(0, n_partials, PARTIALS):
            p = start + tl.arange(0, PARTIALS)
            row_block = first_row // BM + p
            group = row_block[:, None] * (BM // LABEL_GROUP) + tl.arange(0, BM // LABEL_GROUP)[None, :]
            row_range = load_ranges(matrix.rows, group, tl.cdiv(matrix.m, LABEL_GROUP))
            classes = classes_of_tile(matrix, row_range, col_range, row_block * BM, block * BN, BM, BN)
            visited = p < n_partials
            if MASKED:
                visited &= (classes & (matrix.pairs | matrix.positives)) != 0
            if SYMMETRIC:
                visited &= row_block * BM + BM <= block * BN
            here = visited[:, None] & (j < n)[None, :]
            maxima, exp_sums = _load_pair(partials.cols + p.to(tl.int64)[:, None] * 2 * n + j[None, :], n, here)
            running_max, exp_sum = add_partials(running_max, exp_sum, maxima, exp_sums)
            partial = visited
            if MASKED:
                partial &= is_full(matrix, classes, row_block * BM, block * BN, BM, BN) == 0
            if tl.max(partial.to(tl.int32), 0) != 0:
                here = partial[:, None] & (j < n)[None, :]
                of = partials.pos_cols + p.to(tl.int64)[:, None] * 4 * n + j[None, :]
                maxima, exp_sums = _load_pair(of, n, here)
                pos_max, pos_exp_sum = add_partials(pos_max, pos_exp_sum, maxima, exp_sums)
                pos_sum += tl.sum(tl.load(of + 2 * n, mask=here, other=0.0), 0)
                pos_count += tl.sum(tl.load(of + 3 * n, mask=here, other=0.0), 0)

    done = j < final
    lse, pos_lse = running_max + tl.log2(exp_sum), pos_max + tl.log2(pos_exp_sum)
    tl.store(at, tl.where(done, lse * LN2, running_max), mask=j < n)
    tl.store(at + n, tl.where(done, pos_lse * LN2, exp_sum), mask=j < n)
    tl.store(at + 2 * n, tl.where(done, pos_sum * LN2, pos_max), mask=j < n)
    tl.store(at + 3 * n, tl.where(done, pos_count, pos_exp_sum), mask=j < n)
    tl.store(at + 4 * n, tl.where(done, lse, pos_sum), mask=j < n)
    tl.store(at + 5 * n, tl.where(done, pos_lse, pos_count), mask=j < n)


@triton.jit
def _load_pair(at, step, here):
    return tl.load(at, mask=here, other=MINUS_INFINITY), tl.load(at + step, mask=here, other=0.0)
