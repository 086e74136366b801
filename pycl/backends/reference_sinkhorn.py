# SPDX-License-Identifier: Apache-2.0
"""The reference backend's Sinkhorn steps: plain torch on stored scores, a strip of samples at a time."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pycl.core.problem import SinkhornProblem, accumulation_dtype
from pycl.core.sinkhorn import solve

STRIP = 512  # samples whose logits are held at once


def sinkhorn_columns(t: SinkhornProblem, potential: Tensor | None) -> Tensor:
    """``log sum_b exp(L_bk + u_b)`` [K]; ``u`` is the sample step's, 0 without a prototype potential."""
    dtype = accumulation_dtype(t.scores.dtype)
    total = torch.full(t.scores.shape[1:], -torch.inf, dtype=dtype, device=t.scores.device)
    for start in range(0, len(t.scores), STRIP):
        logits = _logits(t, start)
        if potential is not None:
            logits = logits + _sample_potential(t, logits + potential, start)[:, None]
        total = torch.logaddexp(total, logits.logsumexp(0))
    return total


def sinkhorn_codes(t: SinkhornProblem, potential: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``softmax_k(L_bk + v_k)`` [B, K] and the samples' potential [B]."""
    codes = t.new_codes()
    u = potential.new_empty(len(t.scores))
    for start in range(0, len(t.scores), STRIP):
        logits, here = _logits(t, start) + potential, slice(start, start + STRIP)
        u[here], codes[here] = _sample_potential(t, logits, start), logits.softmax(1)
    return codes, u


sinkhorn = partial(solve, sinkhorn_columns, sinkhorn_codes)


def _logits(t: SinkhornProblem, start: int) -> Tensor:
    return t.scores[start : start + STRIP].to(accumulation_dtype(t.scores.dtype)) / t.epsilon


def _sample_potential(t: SinkhornProblem, logits: Tensor, start: int) -> Tensor:
    u = -logits.logsumexp(1)
    return u if t.sample_target is None else t.sample_target[start : start + STRIP] + u
