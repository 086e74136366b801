# SPDX-License-Identifier: Apache-2.0
"""The parts that the programs of a forward sweep leave, added up in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import LN2, MINUS_INFINITY
from pycl.triton_kernels.pair_classes import GROUP, is_plain, kind_of_tile, ranges_of, ranges_of_block

# A log-sum-exp on its way is (shift, sum of 2^(l - shift)). A point's state: that of the denominator set, that of the
# positive set, the sum of its positive logits, their number.
STATE = tl.constexpr(6)


@triton.jit
def finite(shift):
    return tl.where(shift == MINUS_INFINITY, 0.0, shift)


@triton.jit
def add_parts(shift, total, shifts, totals):
    """(shift, total) with [parts, B] others."""
    new = tl.maximum(shift, tl.max(shifts, 0))
    kept = finite(new)
    others = tl.sum(totals * tl.exp2(shifts - kept[None, :]), 0)
    return new, total * tl.exp2(shift - kept) + others


@triton.jit(do_not_specialize=["m", "n", "first_row", "rows_here", "runs", "offset", "negatives", "positives"])
def merge(
    row_stats, col_stats, rows, cols, row_parts, den_parts, pos_parts,
    m, n, first_row, rows_here, runs, offset, negatives, positives,
    SYMMETRIC: tl.constexpr, PLANNED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Add the parts of a sweep over the rows [first_row, first_row + rows_here), BN points a program.

    To ``row_stats`` [STATE, m], and in the programs behind the rows' to ``col_stats`` [STATE, n] or None; if SYMMETRIC
    points are both, those before the rows have had everything.
    """
    program, first_block, end = tl.program_id(0), first_row // BN, first_row + rows_here
    if SYMMETRIC:
        _merge(
            row_stats, rows, cols, row_parts, den_parts, pos_parts, first_block + program, first_row > 0, end,
            m, n, first_row, rows_here, runs, offset, negatives, positives, SYMMETRIC, PLANNED, BM, BN, PARTS,
        )  # fmt: skip
    else:
        row_blocks = tl.cdiv(rows_here, BN)
        if program < row_blocks:
            _merge(
                row_stats, rows, cols, row_parts, None, None, first_block + program, False, end,
                m, m, first_row, rows_here, runs, offset, negatives, positives, SYMMETRIC, PLANNED, BM, BN, PARTS,
            )  # fmt: skip
        elif col_stats is not None:
            _merge(
                col_stats, rows, cols, None, den_parts, pos_parts, program - row_blocks, first_row > 0,
                tl.where(end == m, n, 0),
                m, n, first_row, rows_here, runs, offset, negatives, positives, SYMMETRIC, PLANNED, BM, BN, PARTS,
            )  # fmt: skip


@triton.jit
def _merge(
    stats, rows, cols, row_parts, den_parts, pos_parts, block, begun, final,
    m, n, first_row, rows_here, runs, offset, negatives, positives,
    SYMMETRIC: tl.constexpr, PLANNED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Add up what there is for the points of a block: into ``stats`` [STATE, n], which hold something if ``begun``.

    Points before ``final`` have got everything: their state becomes (lse, pos_lse, pos_sum, pos_count) in nats, then
    both log-sum-exps in units of log 2. ``row_parts`` are of the points themselves; ``den_parts`` and ``pos_parts`` of
    the points as columns.
    """
    j = block * BN + tl.arange(0, BN)
    known = j < tl.where(begun, n, 0)
    at = stats + j
    shift = tl.load(at, mask=known, other=MINUS_INFINITY)
    total = tl.load(at + n, mask=known, other=0.0)
    pos_shift = tl.load(at + 2 * n, mask=known, other=MINUS_INFINITY)
    pos_total = tl.load(at + 3 * n, mask=known, other=0.0)
    pos_sum = tl.load(at + 4 * n, mask=known, other=0.0)
    pos_count = tl.load(at + 5 * n, mask=known, other=0.0)

    if row_parts is not None:
        local = j - first_row
        own = (local >= 0) & (local < rows_here)
        for part in range(0, runs, PARTS):
            p = part + tl.arange(0, PARTS)
            here = (p < runs)[:, None] & own[None, :]
            of = row_parts + p.to(tl.int64)[:, None] * STATE * rows_here + local[None, :]
            shifts, totals = _load_pair(of, rows_here, here)
            shift, total = add_parts(shift, total, shifts, totals)
            shifts, totals = _load_pair(of + 2 * rows_here, rows_here, here)
            pos_shift, pos_total = add_parts(pos_shift, pos_total, shifts, totals)
            pos_sum += tl.sum(tl.load(of + 4 * rows_here, mask=here, other=0.0), 0)
            pos_count += tl.sum(tl.load(of + 5 * rows_here, mask=here, other=0.0), 0)
    if den_parts is not None:
        col_range = ranges_of_block(cols, block, n, BN)
        n_parts = tl.cdiv(rows_here, BM)
        for part in range(0, n_parts, PARTS):
            p = part + tl.arange(0, PARTS)
            row_block = first_row // BM + p
            group = row_block[:, None] * (BM // GROUP) + tl.arange(0, BM // GROUP)[None, :]
            row_range = ranges_of(rows, group, tl.cdiv(m, GROUP))
            kind = kind_of_tile(row_range, col_range, row_block * BM, block * BN, offset, BM, BN)
            visited = p < n_parts
            if PLANNED:
                visited &= (kind & (negatives | positives)) != 0
            if SYMMETRIC:
                visited &= row_block * BM + BM <= block * BN
            here = visited[:, None] & (j < n)[None, :]
            shifts, totals = _load_pair(den_parts + p.to(tl.int64)[:, None] * 2 * n + j[None, :], n, here)
            shift, total = add_parts(shift, total, shifts, totals)
            mixed = visited
            if PLANNED:
                mixed &= is_plain(kind, row_block * BM, block * BN, m, n, negatives, positives, BM, BN) == 0
            if tl.max(mixed.to(tl.int32), 0) != 0:
                here = mixed[:, None] & (j < n)[None, :]
                of = pos_parts + p.to(tl.int64)[:, None] * 4 * n + j[None, :]
                shifts, totals = _load_pair(of, n, here)
                pos_shift, pos_total = add_parts(pos_shift, pos_total, shifts, totals)
                pos_sum += tl.sum(tl.load(of + 2 * n, mask=here, other=0.0), 0)
                pos_count += tl.sum(tl.load(of + 3 * n, mask=here, other=0.0), 0)

    done = j < final
    lse, pos_lse = shift + tl.log2(total), pos_shift + tl.log2(pos_total)
    tl.store(at, tl.where(done, lse * LN2, shift), mask=j < n)
    tl.store(at + n, tl.where(done, pos_lse * LN2, total), mask=j < n)
    tl.store(at + 2 * n, tl.where(done, pos_sum * LN2, pos_shift), mask=j < n)
    tl.store(at + 3 * n, tl.where(done, pos_count, pos_total), mask=j < n)
    tl.store(at + 4 * n, tl.where(done, lse, pos_sum), mask=j < n)
    tl.store(at + 5 * n, tl.where(done, pos_lse, pos_count), mask=j < n)


@triton.jit
def _load_pair(at, step, here):
    return tl.load(at, mask=here, other=MINUS_INFINITY), tl.load(at + step, mask=here, other=0.0)
