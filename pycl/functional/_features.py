# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's log-sum-exps from features and prototypes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pycl import backends, pages
from pycl.engine import pair_stats
from pycl.functional._common import no_autocast, unit
from pycl.pairs import Pairs, Points
from pycl.problem import Transport, accumulation_dtype
from pycl.sinkhorn import step

# Bytes of scores that are computed once, for all iterations to read: 27 ms in place of 104 at 4096 x 3000, d = 128.
WORKSPACE = 64 << 20


def feature_logits(
    z: Tensor,
    prototypes: Tensor,
    epsilon: float,
    sample_target: Tensor | None = None,
    soft_step: Callable[[Tensor], Tensor] | None = None,
    *,
    normalize: bool = False,
    backend: str | None = None,
) -> Sweeps | Stored:
    """What reduces the logits ``<z_b, c_k> / epsilon`` over samples and over prototypes.

    Few scores are stored where the backend has the steps for it. Those keep sums in range by what a sample step makes
    of them: a soft marginal, whose step is given, takes the engine's sweeps.
    """
    dtype = accumulation_dtype(torch.promote_types(z.dtype, prototypes.dtype))
    few = len(z) * len(prototypes) * dtype.itemsize <= WORKSPACE
    if few and soft_step is None and not torch.compiler.is_compiling():
        name = backends.choose(backend, z.device.type, z.dtype)
        if hasattr(backends.load(name), "sinkhorn_samples"):
            scores = pages.empty((len(z), len(prototypes)), dtype)
            with no_autocast(z):
                torch.mm(unit(z, normalize).to(dtype), unit(prototypes, normalize).to(dtype).T, out=scores)
            # a step reads neither how many there are nor the prototypes' target
            return Stored(name, Transport(scores, epsilon, 1, sample_target, scores.new_empty(0), dtype))
    sample_step = soft_step or partial(step, target=sample_target)
    return Sweeps(z, prototypes, epsilon, sample_step, normalize, backend)


class Stored(NamedTuple):
    """``Sweeps`` by the steps on stored scores."""

    backend: str
    transport: Transport

    def prototype_lse(self, v: Tensor | None) -> Tensor:
        found: Tensor = backends.load(self.backend).sinkhorn_columns(self.transport, v)
        return found

    def sample_lse(self, v: Tensor) -> Tensor:
        found: Tensor = backends.load(self.backend).sinkhorn_samples(self.transport, v)
        return found


class Sweeps(NamedTuple):
    """Log-sum-exps by sweeps of the engine: no score is stored."""

    z: Tensor
    prototypes: Tensor
    epsilon: float
    sample_step: Callable[[Tensor], Tensor]
    normalize: bool = False
    backend: str | None = None

    def prototype_lse(self, v: Tensor | None) -> Tensor:
        """``log sum_b exp(L_bk + u_b)`` [K], ``u`` from the sample step, or 0 where ``v`` is None."""
        return self._lse(self.prototypes, self.z, None if v is None else self.sample_step(self.sample_lse(v)))

    def sample_lse(self, v: Tensor) -> Tensor:
        """``log sum_k exp(L_bk + v_k)`` [B]."""
        return self._lse(self.z, self.prototypes, v)

    def _lse(self, anchors: Tensor, candidates: Tensor, bias: Tensor | None) -> Tensor:
        return pair_stats(
            Points(anchors),
            Points(candidates),
            1 / self.epsilon,
            denominator=Pairs.ALL,
            col_bias=bias,
            offset=None,
            normalize=self.normalize,
            backend=self.backend,
        ).lse
