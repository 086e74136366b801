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

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pycl.core.problem import Transport
from pycl.triton_kernels.launch import launch
from pycl.triton_kernels.operands import cast
from pycl.triton_kernels.sides import cdiv, device_of, next_power_of_2
from pycl.triton_kernels.tile import LN2, LOG2E, MINUS_INFINITY

LOWEST = tl.constexpr(-3e38)  # a shift before the first logit: finite, so that -inf less it is no NaN

TILE = 8192  # entries of a block of rows on one multiprocessor, two of which have room there:
ENTRIES = 32  # for each thread, of the logits, of the potentials and of the sums, are what registers hold
MOST_ROWS = 16
COLUMNS = 512  # of a block where rows are not held
MOST_CTAS = 8  # multiprocessors of a cluster, on any GPU that has clusters
CLUSTERS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)  # earlier ones cannot reduce over a cluster


class Rows(NamedTuple):
    """The block of rows that ``sample_step`` holds."""

    rows: int
    prototypes: int
    warps: int  # of each multiprocessor
    ctas: int  # multiprocessors that share the prototypes

    @property
    def resident(self) -> int:
        """Programs that fit on a multiprocessor together."""
        return 16 // self.warps


def rows_for(scores: Tensor) -> Rows | None:
    """None where no cluster holds a row, or the GPU has none."""
    arch, n, ctas = device_of(scores.device).architecture, _power(scores.shape[1]), 1
    if n > 2 * TILE:
        ctas = min(n // TILE, MOST_CTAS)
        if not (CLUSTERS and 90 <= arch < 120) or n // ctas > 2 * TILE:
            return None
    rows = min(max(1, TILE * ctas // n), MOST_ROWS)
    return Rows(rows, n, max(1, rows * n // ctas // (32 * ENTRIES)), ctas)


def _power(n: int) -> int:
    return max(32, next_power_of_2(n))


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


def sinkhorn_columns(t: Transport, potential: Tensor | None) -> Tensor:
    """``log sum_b exp(L_bk + u_b)`` [K]; ``u`` is the sample step's, 0 without a prototype potential."""
    n_samples, n = t.scores.shape
    lse = torch.empty(n, device=t.scores.device)
    if n_samples == 0:
        return lse.fill_(-torch.inf)
    held = None if potential is None else rows_for(t.scores)
    if held is None:
        parts = _column_parts(t, None if potential is None else _sample_stream(t, potential, None))
    else:
        parts = lse.new_empty(_programs(t.scores, held), n)
        _sample_step(t, held, potential, parts, None, None)
    of_parts = None if held is None else potential
    launch(merge_columns, (cdiv(n, 32),), parts, of_parts, lse, len(parts), n, BN=32, PARTS=64, num_warps=4)
    return lse


def sinkhorn_codes(t: Transport, potential: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``softmax_k(L_bk + v_k)`` [B, K] and the samples' potential [B]."""
    codes = t.new_codes()
    if len(codes) == 0:
        return codes, potential.new_empty(0)
    held = rows_for(t.scores)
    if held is None:
        return codes, _sample_stream(t, potential, codes)
    u = potential.new_empty(len(codes))
    _sample_step(t, held, potential, None, codes, u)
    return codes, u


def _sample_step(
    t: Transport, held: Rows, potential: Tensor | None, parts: Tensor | None, codes: Tensor | None, u: Tensor | None
) -> None:
    arguments = potential, t.sample_target, parts, codes, u
    # two blocks ahead; one where two exceed the 99 KB of shared memory that every architecture has, or loads are short
    ahead = (
        2 if held.rows * held.prototypes // held.ctas * t.scores.itemsize <= 32 << 10 and _align(t.scores) > 1 else 1
    )
    options = {"BM": held.rows, "BK": held.prototypes, "num_warps": held.warps, "num_ctas": held.ctas}
    options |= {"STAGES": ahead + 1, "maxnreg": 65536 // (32 * held.warps * held.resident)}
    _launch(sample_step, (_programs(t.scores, held),), t, arguments, **options)


def _programs(scores: Tensor, held: Rows) -> int:
    slots = device_of(scores.device).multiprocessors // held.ctas * held.resident
    return min(cdiv(len(scores), held.rows), max(1, slots))


def _sample_stream(t: Transport, potential: Tensor, codes: Tensor | None) -> Tensor:
    u, rows, cols = potential.new_empty(len(t.scores)), 4, min(COLUMNS, _power(t.scores.shape[1]))
    arguments = potential, t.sample_target, codes, u
    _launch(sample_stream, (cdiv(len(u), rows),), t, arguments, BM=rows, BN=cols, STAGES=3, num_warps=4)
    return u


def _column_parts(t: Transport, u: Tensor | None) -> Tensor:
    n_samples, n = t.scores.shape
    rows, cols = 8, min(COLUMNS, _power(n))
    blocks, slots = cdiv(n, cols), 4 * device_of(t.scores.device).multiprocessors
    programs = min(cdiv(n_samples, rows), max(1, slots // blocks))
    parts = torch.empty(programs, 2, n, device=t.scores.device)
    _launch(column_lse, (blocks, programs), t, (u, parts), BM=rows, BN=cols, STAGES=3, num_warps=4)
    return parts


def _align(scores: Tensor) -> int:
    """Entries in 16 bytes where rows begin and end at multiples of these, else 1."""
    entries = 16 // scores.itemsize
    return entries if scores.shape[1] % entries == 0 == scores.stride(0) % entries else 1


def _launch(
    kernel: Any, grid: tuple[int, ...], t: Transport, arguments: tuple[Tensor | None, ...], **more: int
) -> None:
    """With the scores and their unit first, their sizes last."""
    (n_samples, n), align = t.scores.shape, _align(t.scores)
    sizes = n_samples, n // align, t.scores.stride(0) // align
    launch(kernel, grid, t.scores, LOG2E.value / t.epsilon, *arguments, *sizes, ALIGN=align, **more)
