# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn's log-sum-exps from features and prototypes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pycl.backends import registry, workspace
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import SinkhornProblem, accumulation_dtype
from pycl.core.sinkhorn import step
from pycl.core.tracing import observed
from pycl.engine.average import pair_average
from pycl.engine.reductions import pair_stats
from pycl.functional._common import no_autocast, unit
from pycl.ops import sinkhorn as operators


def feature_logits(
    z: Tensor,
    prototypes: Tensor,
    epsilon: float,
    sample_target: Tensor | None = None,
    soft_step: Callable[[Tensor], Tensor] | None = None,
    *,
    taking_part: Tensor | None = None,
    normalize: bool = False,
    backend: str | None = None,
) -> Sweeps | Stored:
    """What reduces the logits ``<z_b, c_k> / epsilon`` over samples, maybe some of them, and over prototypes.

    Scores that fit the workspace are computed once, for all iterations to read, where the backend has the steps for it:
    27 ms in place of 104 at 4096 x 3000, d = 128. Those keep sums in range by what a sample step makes of them: a soft
    marginal, whose step is given, takes the engine's sweeps, and so do samples that take no part.
    """
    dtype = accumulation_dtype(torch.promote_types(z.dtype, prototypes.dtype))
    stored = soft_step is None and taking_part is None and not torch.compiler.is_compiling()
    if stored and z.shape[0] * prototypes.shape[0] * dtype.itemsize <= workspace.left():
        name = registry.choose(backend, z.device.type, z.dtype)
        if registry.has(name, "sinkhorn_samples"):
            with no_autocast(z):
                operands = unit(z, normalize).to(dtype), unit(prototypes, normalize).to(dtype)
                scores = operators.scores(*operands, name)
            # a step reads neither how many there are nor the prototypes' target
            return Stored(name, SinkhornProblem(scores, epsilon, 1, sample_target, scores.new_empty(0), dtype))
    sample_step = soft_step or partial(step, target=sample_target)
    bias = None
    if taking_part is not None:
        bias = torch.zeros(z.shape[0], dtype=dtype, device=z.device).masked_fill(~taking_part, -torch.inf)
    return Sweeps(z, prototypes, epsilon, sample_step, bias, normalize, backend)


class Stored(NamedTuple):
    """``Sweeps`` by the steps on stored scores."""

    backend: str
    transport: SinkhornProblem

    def prototype_lse(self, v: Tensor | None) -> Tensor:
        return operators.columns(self.transport, v, self.backend)

    def sample_lse(self, v: Tensor) -> Tensor:
        return operators.samples(self.transport, v, self.backend)

    def code_means(self, v: Tensor, z: Tensor, values: Tensor) -> Tensor:
        """``Sweeps.code_means`` by a product with codes that are kept, and one in the backward; sweeps take four.

        The codes take the place of the scores.
        """
        scores, given = self.transport.scores, values.to(self.transport.dtype)
        in_place = len(z) == len(scores) and not observed()
        mine = self.transport._replace(scores=scores[-len(z) :], out=scores if in_place else None)
        with torch.no_grad():
            codes, _ = operators.codes(mine, v, self.backend)
        with no_autocast(codes):
            return codes @ given

    def code_means_at_once(self, prototype_target: Tensor, iterations: int, values: Tensor) -> Tensor:
        """``code_means`` of all samples: where no other rank has a say, all iterations are one call."""
        scores = self.transport.scores
        out, target = None if observed() else scores, prototype_target.to(scores.dtype)  # which kernels take it for
        whole = self.transport._replace(iterations=iterations, prototype_target=target, out=out)
        with torch.no_grad():
            codes, _, _ = operators.sinkhorn(whole, self.backend)
        with no_autocast(codes):
            return codes @ values.to(codes.dtype)


class Sweeps(NamedTuple):
    """Log-sum-exps by sweeps of the engine: no score is stored."""

    z: Tensor
    prototypes: Tensor
    epsilon: float
    sample_step: Callable[[Tensor], Tensor]
    bias: Tensor | None = None  # of the samples: -inf for those that take no part
    normalize: bool = False
    backend: str | None = None

    def prototype_lse(self, v: Tensor | None) -> Tensor:
        """``log sum_b exp(L_bk + u_b)`` [K], ``u`` from the sample step, or 0 where ``v`` is None."""
        u = None if v is None else self.sample_step(self.sample_lse(v))
        if self.bias is not None:
            u = self.bias if u is None else u + self.bias
        return self._lse(self.prototypes, self.z, u)

    def sample_lse(self, v: Tensor) -> Tensor:
        """``log sum_k exp(L_bk + v_k)`` [B]."""
        return self._lse(self.z, self.prototypes, v)

    def code_means(self, v: Tensor, z: Tensor, values: Tensor) -> Tensor:
        """The values' means [n, dv] under the codes of z, the last n samples: constants, by the last sample step."""
        rows, cols = Points(z), Points(self.prototypes)
        return pair_average(rows, cols, values, 1 / self.epsilon, col_bias=v, offset=None, backend=self.backend)

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
