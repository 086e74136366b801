# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's steps on stored scores: log-sum-exps over the samples, codes of the samples.

``sample_step_kernel`` holds whole rows in registers. From the same numbers it finishes the potentials of its samples
and adds these samples to the sums over columns. A program keeps its sums until it has seen all its rows. Rows too long
for one multiprocessor are spread over a cluster of them. Where there are no clusters, ``sample_stream_kernel`` finds
the potentials and ``column_lse_kernel`` reads the scores once more. ``combine_columns_kernel`` adds the programs' sums
in a fixed order.

Logits are in units of log 2, the potentials at the boundary in nats.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import LN2, LOG2E, MINUS_INFINITY, cast

LOWEST = tl.constexpr(-3e38)  # a maximum before the first logit: finite, so that -inf less it is no NaN


class Scores(NamedTuple):
    """[n_samples, n ALIGN] scores; a kernel makes it of its arguments, as of UNSPECIALIZED ones.

    ``n`` and ``stride`` count groups of ALIGN entries: an alignment that the compiler can see.
    """

    pointer: Any
    scale_log2: Any  # 1 / epsilon in units of log 2
    n_samples: Any
    n: Any
    stride: Any


@triton.jit
def _logits(scores, b, k, ALIGN: tl.constexpr):
    """[samples b, prototypes k], -inf beyond the ends of the scores."""
    at = (b.to(tl.int64) * scores.stride)[:, None] * ALIGN + k[None, :]
    here = (b < scores.n_samples)[:, None] & (k < scores.n * ALIGN)[None, :]
    return tl.load(scores.pointer + at, mask=here, other=MINUS_INFINITY).to(tl.float32) * scores.scale_log2


@triton.jit
def _add_logits(running_max, exp_sum, l):
    """(running_max, sum of 2^(l - running_max)) with one more logit each, by one exponential; a NaN stays."""
    ahead = l - running_max
    e = tl.exp2(-tl.abs(ahead))
    rises = ahead > 0
    return tl.where(rises, l, running_max), tl.where(rises, exp_sum * e + 1.0, exp_sum + e)


@triton.jit
def _reduce(running_max, exp_sum, AXIS: tl.constexpr):
    peak = tl.max(running_max, AXIS)
    return peak, tl.sum(exp_sum * tl.exp2(running_max - tl.expand_dims(peak, AXIS)), AXIS)


@triton.jit
def _target(target, b, n_samples):
    """log2 of the samples' mass."""
    if target is None:
        return tl.zeros(b.shape, tl.float32)
    else:
        return tl.load(target + b, mask=b < n_samples, other=0.0) * LOG2E


@triton.jit
def _store_codes(codes, found, b, k, scores, ALIGN: tl.constexpr):
    at = (b.to(tl.int64) * scores.n)[:, None] * ALIGN + k[None, :]
    here = (b < scores.n_samples)[:, None] & (k < scores.n * ALIGN)[None, :]
    tl.store(codes + at, cast(found, codes.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["n_samples", "n", "stride"])
def sample_step_kernel(
    pointer, scale_log2, potential, target, partials, codes, u, n_samples, n, stride,
    ALIGN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Blocks of BM whole rows, every ``num_programs``-th.

    ``partials`` [programs, n]: the sums over the rows of exp(L + u + v); ``codes`` [n_samples, n]: the rows' softmax of
    L + v; ``u`` [n_samples]: their potential. Any of them may be None.
    """
    scores = Scores(pointer, scale_log2, n_samples, n, stride)
    k = tl.arange(0, BK)
    v = tl.load(potential + k, mask=k < n * ALIGN, other=0.0) * LOG2E
    sums = tl.zeros((BM, BK), tl.float32)
    n_blocks = tl.cdiv(n_samples, BM)
    for block in tl.range(tl.program_id(0), n_blocks, tl.num_programs(0), num_stages=STAGES):
        b = block * BM + tl.arange(0, BM)
        l = _logits(scores, b, k, ALIGN) + v[None, :]
        peak = tl.max(l, 1)
        peak = tl.where(peak == MINUS_INFINITY, 0.0, peak)  # a row of -inf: 0 / 0 below, not -inf + inf here
        e = tl.exp2(l - peak[:, None])
        total = tl.sum(e, 1)
        mass = _target(target, b, n_samples)
        if partials is not None:
            # The largest entry of a column is at least m_k a_b after a prototype step, and every entry at most B a_b:
            # these sums need no maximum. Nor does e vanish there, which is that entry times total / (B a_b).
            share = tl.where(b < n_samples, tl.exp2(mass) / total, 0.0)
            sums += e * share[:, None]
        if codes is not None:
            _store_codes(codes, e * (1.0 / total)[:, None], b, k, scores, ALIGN)
        if u is not None:
            tl.store(u + b, (mass - peak - tl.log2(total)) * LN2, mask=b < n_samples)
    if partials is not None:
        at = partials + tl.program_id(0).to(tl.int64) * n * ALIGN + k
        tl.store(at, tl.sum(sums, 0), mask=k < n * ALIGN)


@triton.jit(do_not_specialize=["n_samples", "n", "stride"])
def sample_stream_kernel(
    pointer, scale_log2, potential, target, codes, u, n_samples, n, stride,
    ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One block of rows of any length: ``u`` [n_samples], and ``codes`` [n_samples, n] where they are not None."""
    scores = Scores(pointer, scale_log2, n_samples, n, stride)
    b = tl.program_id(0) * BM + tl.arange(0, BM)
    running_max, exp_sum = tl.full((BM, BN), LOWEST, tl.float32), tl.zeros((BM, BN), tl.float32)
    for k0 in tl.range(0, n * ALIGN, BN, num_stages=STAGES):
        k = k0 + tl.arange(0, BN)
        v = tl.load(potential + k, mask=k < n * ALIGN, other=0.0) * LOG2E
        running_max, exp_sum = _add_logits(running_max, exp_sum, _logits(scores, b, k, ALIGN) + v[None, :])
    peak, sum_ = _reduce(running_max, exp_sum, 1)
    lse = peak + tl.log2(sum_)
    tl.store(u + b, (_target(target, b, n_samples) - lse) * LN2, mask=b < n_samples)
    if codes is not None:
        for k0 in tl.range(0, n * ALIGN, BN, num_stages=STAGES):
            k = k0 + tl.arange(0, BN)
            v = tl.load(potential + k, mask=k < n * ALIGN, other=0.0) * LOG2E
            l = _logits(scores, b, k, ALIGN) + v[None, :]
            _store_codes(codes, tl.exp2(l - lse[:, None]), b, k, scores, ALIGN)


@triton.jit(do_not_specialize=["n_samples", "n", "stride"])
def column_lse_kernel(
    pointer, scale_log2, u, partials, n_samples, n, stride,
    ALIGN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A block of columns (axis 0) of every ``num_programs``-th block of BM rows (axis 1), with ``u`` or without.

    ``partials`` [programs of axis 1, 2, n]: the largest logit, the sum of 2^(l - largest).
    """
    scores = Scores(pointer, scale_log2, n_samples, n, stride)
    k = tl.program_id(0) * BN + tl.arange(0, BN)
    running_max, exp_sum = tl.full((BM, BN), LOWEST, tl.float32), tl.zeros((BM, BN), tl.float32)
    n_blocks = tl.cdiv(n_samples, BM)
    for block in tl.range(tl.program_id(1), n_blocks, tl.num_programs(1), num_stages=STAGES):
        b = block * BM + tl.arange(0, BM)
        l = _logits(scores, b, k, ALIGN)
        if u is not None:
            l += tl.load(u + b, mask=b < n_samples, other=0.0)[:, None] * LOG2E
        running_max, exp_sum = _add_logits(running_max, exp_sum, l)
    peak, sum_ = _reduce(running_max, exp_sum, 0)
    at = partials + tl.program_id(1).to(tl.int64) * 2 * n * ALIGN + k
    tl.store(at, peak, mask=k < n * ALIGN)
    tl.store(at + n * ALIGN, sum_, mask=k < n * ALIGN)


@triton.jit(do_not_specialize=["n_partials", "n"])
def combine_columns_kernel(partials, potential, lse, n_partials, n, BN: tl.constexpr, PARTIALS: tl.constexpr):
    """``lse`` [n] in nats, from ``sample_step_kernel``, whose ``potential`` this was, or ``column_lse_kernel``."""
    k = tl.program_id(0) * BN + tl.arange(0, BN)
    running_max, exp_sum = tl.full((PARTIALS, BN), LOWEST, tl.float32), tl.zeros((PARTIALS, BN), tl.float32)
    for start in range(0, n_partials, PARTIALS):
        p = start + tl.arange(0, PARTIALS)
        here = (p < n_partials)[:, None] & (k < n)[None, :]
        if potential is not None:
            exp_sum += tl.load(partials + p.to(tl.int64)[:, None] * n + k[None, :], mask=here, other=0.0)
        else:
            at = partials + p.to(tl.int64)[:, None] * 2 * n + k[None, :]
            maxima = tl.load(at, mask=here, other=LOWEST)
            new_max = tl.maximum(running_max, maxima)
            exp_sums = tl.load(at + n, mask=here, other=0.0)
            exp_sum = exp_sum * tl.exp2(running_max - new_max) + exp_sums * tl.exp2(maxima - new_max)
            running_max = new_max
    if potential is not None:
        found = tl.log2(tl.sum(exp_sum, 0)) * LN2 - tl.load(potential + k, mask=k < n, other=0.0)
    else:
        peak, sum_ = _reduce(running_max, exp_sum, 0)
        found = (peak + tl.log2(sum_)) * LN2
    tl.store(lse + k, found, mask=k < n)
