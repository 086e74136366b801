# SPDX-License-Identifier: Apache-2.0
"""Embeddings at unit length, in plain torch: the formula that operators compute in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.core.problem import NORM_EPS


def widen(z: Tensor) -> Tensor:
    """At least float32: half types become float32, the others stay."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def unit(z: Tensor) -> Tensor:
    """Embeddings in at least float32, L2-normalised (eps 1e-12).

    Rows are divided by their largest entry first, or squares of huge and tiny entries would leave the range. The
    gradient of a zero row is that of x / eps; in float16, where 1 / eps overflows, it is 0.
    """
    half = z.dtype == torch.float16
    z = widen(z)
    peak = z.detach().abs().amax(-1, keepdim=True)
    peak = peak.masked_fill(zero := peak == 0, 1.0).clamp_min(torch.finfo(z.dtype).tiny)  # or eps / peak overflows
    z = z / peak
    if half:
        z = z.masked_fill(zero, 0.0)
    norm: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / norm.clamp_min(NORM_EPS / peak)
