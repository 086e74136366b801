# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's steps on stored scores: log-sum-exps over the samples, codes of the samples.

``sample_step`` holds whole rows in registers: what it takes to finish the potentials of its samples and, from the same
numbers, to add these samples to the sums over columns. A program keeps its sums until it has seen all its rows. Rows
too long for one multiprocessor are spread over a cluster of them; where there are no clusters, ``sample_stream``
finds the potentials and ``column_lse`` reads the scores once more. ``merge_columns`` adds the programs' sums in a fixed
order.

Logits are in units of log 2, the potentials at the boundary in nats.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import LN2, LOG2E, MINUS_INFINITY, cast

LOWEST = tl.constexpr(-3e38)  # a shift before the first logit: finite, so that -inf less it is no NaN


@triton.jit
def _logits(scores, unit, b, k, n_samples, n, stride, ALIGN: tl.constexpr):
    """[samples b, prototypes k] of the scores times ``unit``, -inf beyond their ends.

    ``n`` and ``stride`` count groups of ALIGN entries: an alignment that the compiler can see.
    """
    at = (b.to(tl.int64) * stride)[:, None] * ALIGN + k[None, :]
    here = (b < n_samples)[:, None] & (k < n * ALIGN)[None, :]
    return tl.load(scores + at, mask=here, other=MINUS_INFINITY).to(tl.float32) * unit


@triton.jit
def _follow(shift, total, l):
    """(shift, sum of 2^(l - shift)) with one more logit each, by one exponential; a NaN stays in the sum."""
    ahead = l - shift
    e = tl.exp2(-tl.abs(ahead))
    rises = ahead > 0
    return tl.where(rises, l, shift), tl.where(rises, total * e + 1.0, total + e)


@triton.jit
def _settle(shift, total, AXIS: tl.constexpr):
    peak = tl.max(shift, AXIS)
    return peak, tl.sum(total * tl.exp2(shift - tl.expand_dims(peak, AXIS)), AXIS)


@triton.jit
def _target(target, b, n_samples):
    """log2 of the samples' mass."""
    if target is None:
        return tl.zeros(b.shape, tl.float32)
    else:
        return tl.load(target + b, mask=b < n_samples, other=0.0) * LOG2E


@triton.jit
def _store_codes(codes, found, b, k, n_samples, n, ALIGN: tl.constexpr):
    at = (b.to(tl.int64) * n)[:, None] * ALIGN + k[None, :]
    here = (b < n_samples)[:, None] & (k < n * ALIGN)[None, :]
    tl.store(codes + at, cast(found, codes.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["n_samples", "n", "stride"])
def sample_step(
    scores, unit, potential, target, parts, codes, u, n_samples, n, stride,
    ALIGN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Blocks of BM whole rows, every ``num_programs``-th.

    ``parts`` [programs, n]: the sums over the rows of exp(L + u + v); ``codes`` [n_samples, n]: the rows' softmax of
    L + v; ``u`` [n_samples]: their potential. Any of them may be None.
    """
    k = tl.arange(0, BK)
    v = tl.load(potential + k, mask=k < n * ALIGN, other=0.0) * LOG2E
    sums = tl.zeros((BM, BK), tl.float32)
    n_blocks = tl.cdiv(n_samples, BM)
    for block in tl.range(tl.program_id(0), n_blocks, tl.num_programs(0), num_stages=STAGES):
        b = block * BM + tl.arange(0, BM)
        l = _logits(scores, unit, b, k, n_samples, n, stride, ALIGN) + v[None, :]
        peak = tl.max(l, 1)
        peak = tl.where(peak == MINUS_INFINITY, 0.0, peak)  # a row of -inf: 0 / 0 below, not -inf + inf here
        e = tl.exp2(l - peak[:, None])
        total = tl.sum(e, 1)
        mass = _target(target, b, n_samples)
        if parts is not None:
            # The largest entry of a column is at least m_k a_b after a prototype step, and every entry at most B a_b:
            # these sums need no maximum. Nor does e vanish there, which is that entry times total / (B a_b).
            share = tl.where(b < n_samples, tl.exp2(mass) / total, 0.0)
            sums += e * share[:, None]
        if codes is not None:
            _store_codes(codes, e * (1.0 / total)[:, None], b, k, n_samples, n, ALIGN)
        if u is not None:
            tl.store(u + b, (mass - peak - tl.log2(total)) * LN2, mask=b < n_samples)
    if parts is not None:
        at = parts + tl.program_id(0).to(tl.int64) * n * ALIGN + k
        tl.store(at, tl.sum(sums, 0), mask=k < n * ALIGN)


@triton.jit(do_not_specialize=["n_samples", "n", "stride"])
def sample_stream(
    scores, unit, potential, target, codes, u, n_samples, n, stride,
    ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One block of rows of any length: ``u`` [n_samples], and ``codes`` [n_samples, n] where they are not None."""
    b = tl.program_id(0) * BM + tl.arange(0, BM)
    shift, total = tl.full((BM, BN), LOWEST, tl.float32), tl.zeros((BM, BN), tl.float32)
    for k0 in tl.range(0, n * ALIGN, BN, num_stages=STAGES):
        k = k0 + tl.arange(0, BN)
        v = tl.load(potential + k, mask=k < n * ALIGN, other=0.0) * LOG2E
        shift, total = _follow(shift, total, _logits(scores, unit, b, k, n_samples, n, stride, ALIGN) + v[None, :])
    peak, sum_ = _settle(shift, total, 1)
    lse = peak + tl.log2(sum_)
    tl.store(u + b, (_target(target, b, n_samples) - lse) * LN2, mask=b < n_samples)
    if codes is not None:
        for k0 in tl.range(0, n * ALIGN, BN, num_stages=STAGES):
            k = k0 + tl.arange(0, BN)
            v = tl.load(potential + k, mask=k < n * ALIGN, other=0.0) * LOG2E
            l = _logits(scores, unit, b, k, n_samples, n, stride, ALIGN) + v[None, :]
            _store_codes(codes, tl.exp2(l - lse[:, None]), b, k, n_samples, n, ALIGN)


@triton.jit(do_not_specialize=["n_samples", "n", "stride"])
def column_lse(
    scores, unit, u, parts, n_samples, n, stride,
    ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A block of columns (axis 0) of every ``num_programs``-th block of BM rows (axis 1), with ``u`` or without.

    ``parts`` [programs of axis 1, 2, n]: the largest logit, the sum of 2^(l - largest).
    """
    k = tl.program_id(0) * BN + tl.arange(0, BN)
    shift, total = tl.full((BM, BN), LOWEST, tl.float32), tl.zeros((BM, BN), tl.float32)
    n_blocks = tl.cdiv(n_samples, BM)
    for block in tl.range(tl.program_id(1), n_blocks, tl.num_programs(1), num_stages=STAGES):
        b = block * BM + tl.arange(0, BM)
        l = _logits(scores, unit, b, k, n_samples, n, stride, ALIGN)
        if u is not None:
            l += tl.load(u + b, mask=b < n_samples, other=0.0)[:, None] * LOG2E
        shift, total = _follow(shift, total, l)
    peak, sum_ = _settle(shift, total, 0)
    at = parts + tl.program_id(1).to(tl.int64) * 2 * n * ALIGN + k
    tl.store(at, peak, mask=k < n * ALIGN)
    tl.store(at + n * ALIGN, sum_, mask=k < n * ALIGN)


@triton.jit(do_not_specialize=["n_parts", "n"])
def merge_columns(parts, potential, lse, n_parts, n, BN: tl.constexpr, PARTS: tl.constexpr):
    """``lse`` [n] in nats, from the parts of ``sample_step``, which ``potential`` made, or those of ``column_lse``."""
    k = tl.program_id(0) * BN + tl.arange(0, BN)
    shift, total = tl.full((PARTS, BN), LOWEST, tl.float32), tl.zeros((PARTS, BN), tl.float32)
    for start in range(0, n_parts, PARTS):
        p = start + tl.arange(0, PARTS)
        here = (p < n_parts)[:, None] & (k < n)[None, :]
        if potential is not None:
            total += tl.load(parts + p.to(tl.int64)[:, None] * n + k[None, :], mask=here, other=0.0)
        else:
            at = parts + p.to(tl.int64)[:, None] * 2 * n + k[None, :]
            shifts = tl.load(at, mask=here, other=LOWEST)
            new = tl.maximum(shift, shifts)
            sums = tl.load(at + n, mask=here, other=0.0)
            total = total * tl.exp2(shift - new) + sums * tl.exp2(shifts - new)
            shift = new
    if potential is not None:
        found = tl.log2(tl.sum(total, 0)) * LN2 - tl.load(potential + k, mask=k < n, other=0.0)
    else:
        peak, sum_ = _settle(shift, total, 0)
        found = (peak + tl.log2(sum_)) * LN2
    tl.store(lse + k, found, mask=k < n)
