# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's steps on stored scores, on the host's side: blocks of whole rows, clusters, programs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import cdiv, launch, next_power_of_2
from pycl.core.problem import SinkhornProblem
from pycl.triton_kernels.numerics import LOG2E
from pycl.triton_kernels.sinkhorn_kernels import (
    column_lse_kernel,
    combine_columns_kernel,
    sample_step_kernel,
    sample_stream_kernel,
)

TILE = 8192  # entries of a block of rows on one multiprocessor, two of which have room there:
ENTRIES = 32  # for each thread, of the logits, of the potentials and of the sums, are what registers hold
MOST_ROWS = 16
COLUMNS = 512  # of a block where rows are not held
MOST_CTAS = 8  # multiprocessors of a cluster, on any GPU that has clusters
CLUSTERS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)  # earlier ones cannot reduce over a cluster


class SampleBlock(NamedTuple):
    """The whole rows that a program of ``sample_step_kernel`` holds."""

    rows: int
    prototypes: int
    warps: int  # of each multiprocessor
    ctas: int  # multiprocessors that share the prototypes

    @property
    def occupancy(self) -> int:
        """Programs that fit on a multiprocessor together."""
        return 16 // self.warps


def sample_block_for(scores: Tensor) -> SampleBlock | None:
    """None where no cluster holds a row, or the GPU has none."""
    arch, n, ctas = device_of(scores.device).architecture, _power(scores.shape[1]), 1
    if n > 2 * TILE:
        ctas = min(n // TILE, MOST_CTAS)
        if not (CLUSTERS and 90 <= arch < 120) or n // ctas > 2 * TILE:
            return None
    rows = min(max(1, TILE * ctas // n), MOST_ROWS)
    return SampleBlock(rows, n, max(1, rows * n // ctas // (32 * ENTRIES)), ctas)


def _power(n: int) -> int:
    return max(32, next_power_of_2(n))


def sinkhorn_columns(t: SinkhornProblem, potential: Tensor | None) -> Tensor:
    """``log sum_b exp(L_bk + u_b)`` [K]; ``u`` is the sample step's, 0 without a prototype potential."""
    n_samples, n = t.scores.shape
    lse = torch.empty(n, device=t.scores.device)
    if n_samples == 0:
        return lse.fill_(-torch.inf)
    held = None if potential is None else sample_block_for(t.scores)
    if held is None:
        partials = _column_partials(t, None if potential is None else _sample_stream(t, potential, None))
    else:
        partials = lse.new_empty(_programs(t.scores, held), n)
        _sample_step(t, held, potential, partials, None, None)
    of_partials = None if held is None else potential
    launch(
        combine_columns_kernel,
        (cdiv(n, 32),),
        *(partials, of_partials, lse, len(partials), n),
        BN=32,
        PARTIALS=64,
        num_warps=4,
    )
    return lse


def sinkhorn_codes(t: SinkhornProblem, potential: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``softmax_k(L_bk + v_k)`` [B, K] and the samples' potential [B]."""
    codes = t.new_codes()
    if len(codes) == 0:
        return codes, potential.new_empty(0)
    held = sample_block_for(t.scores)
    if held is None:
        return codes, _sample_stream(t, potential, codes)
    u = potential.new_empty(len(codes))
    _sample_step(t, held, potential, None, codes, u)
    return codes, u


def _sample_step(
    t: SinkhornProblem,
    held: SampleBlock,
    potential: Tensor | None,
    partials: Tensor | None,
    codes: Tensor | None,
    u: Tensor | None,
) -> None:
    arguments = potential, t.sample_target, partials, codes, u
    # two blocks ahead; one where two exceed the 99 KB of shared memory that every architecture has, or loads are short
    ahead = (
        2 if held.rows * held.prototypes // held.ctas * t.scores.itemsize <= 32 << 10 and _align(t.scores) > 1 else 1
    )
    options = {"BM": held.rows, "BK": held.prototypes, "num_warps": held.warps, "num_ctas": held.ctas}
    options |= {"STAGES": ahead + 1, "maxnreg": 65536 // (32 * held.warps * held.occupancy)}
    _launch(sample_step_kernel, (_programs(t.scores, held),), t, arguments, **options)


def _programs(scores: Tensor, held: SampleBlock) -> int:
    slots = device_of(scores.device).num_sms // held.ctas * held.occupancy
    return min(cdiv(len(scores), held.rows), max(1, slots))


def _sample_stream(t: SinkhornProblem, potential: Tensor, codes: Tensor | None) -> Tensor:
    u, rows, cols = potential.new_empty(len(t.scores)), 4, min(COLUMNS, _power(t.scores.shape[1]))
    arguments = potential, t.sample_target, codes, u
    _launch(sample_stream_kernel, (cdiv(len(u), rows),), t, arguments, BM=rows, BN=cols, STAGES=3, num_warps=4)
    return u


def _column_partials(t: SinkhornProblem, u: Tensor | None) -> Tensor:
    n_samples, n = t.scores.shape
    rows, cols = 8, min(COLUMNS, _power(n))
    blocks, slots = cdiv(n, cols), 4 * device_of(t.scores.device).num_sms
    programs = min(cdiv(n_samples, rows), max(1, slots // blocks))
    partials = torch.empty(programs, 2, n, device=t.scores.device)
    _launch(column_lse_kernel, (blocks, programs), t, (u, partials), BM=rows, BN=cols, STAGES=3, num_warps=4)
    return partials


def _align(scores: Tensor) -> int:
    """Entries in 16 bytes where rows begin and end at multiples of these, else 1."""
    entries = 16 // scores.itemsize
    return entries if scores.shape[1] % entries == 0 == scores.stride(0) % entries else 1


def _launch(
    kernel: Any, grid: tuple[int, ...], t: SinkhornProblem, arguments: tuple[Tensor | None, ...], **more: int
) -> None:
    """With the scores and their scale first, their sizes last."""
    (n_samples, n), align = t.scores.shape, _align(t.scores)
    sizes = n_samples, n // align, t.scores.stride(0) // align
    launch(kernel, grid, t.scores, LOG2E.value / t.epsilon, *arguments, *sizes, ALIGN=align, **more)
