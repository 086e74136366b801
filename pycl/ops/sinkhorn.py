# SPDX-License-Identifier: Apache-2.0
"""The operators of Sinkhorn, and calls of them on a ``SinkhornProblem``."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pycl.core.problem import SinkhornProblem, accumulation_dtype
from pycl.ops import schemas
from pycl.ops.schemas import operators

_SCORES = "Tensor scores, float epsilon"
_POTENTIALS = "Tensor, Tensor"  # of the samples and of the prototypes


def sinkhorn(t: SinkhornProblem, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and the potentials of the samples and of the prototypes."""
    given, out = t[:-1], t.out
    if out is None:
        return cast("tuple[Tensor, Tensor, Tensor]", operators.sinkhorn(*given, backend))
    return out, *operators.sinkhorn_out(*given[:-1], out, backend)


def columns(t: SinkhornProblem, potential: Tensor | None, backend: str) -> Tensor:
    """``log sum_b exp(L_bk + u_b)`` [K], ``u`` from the sample step with the prototypes' potential, or 0 without."""
    return cast("Tensor", operators.sinkhorn_columns(t.scores, t.epsilon, t.sample_target, potential, backend))


def samples(t: SinkhornProblem, potential: Tensor, backend: str) -> Tensor:
    """``log sum_k exp(L_bk + v_k)`` [B]."""
    return cast("Tensor", operators.sinkhorn_samples(t.scores, t.epsilon, potential, backend))


def codes(t: SinkhornProblem, potential: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Codes and the samples' potential from the prototypes'."""
    given = t.scores, t.epsilon, t.sample_target, potential
    if t.out is None:
        return cast("tuple[Tensor, Tensor]", operators.sinkhorn_codes(*given, t.dtype, backend))
    return t.out, operators.sinkhorn_codes_out(*given, t.out, backend)


def scores(z: Tensor, prototypes: Tensor, backend: str) -> Tensor:
    """``<z_b, c_k>`` [B, K] of features of one dtype."""
    return cast("Tensor", operators.sinkhorn_scores(z, prototypes, backend))


def _step(scores: Tensor, epsilon: float, sample_target: Tensor | None, out: torch.dtype | Tensor) -> SinkhornProblem:
    """A step reads neither the number of iterations nor the prototypes' target."""
    memory = out if isinstance(out, Tensor) else None
    dtype = out.dtype if isinstance(out, Tensor) else out
    return SinkhornProblem(scores, epsilon, 1, sample_target, scores.new_empty(0), dtype, memory)


def _vectors(t: SinkhornProblem) -> tuple[Tensor, Tensor]:
    """The potentials of the samples and of the prototypes, without values."""
    new, dtype = t.scores.new_empty, accumulation_dtype(t.scores.dtype)
    return new(t.scores.shape[0], dtype=dtype), new(t.scores.shape[1], dtype=dtype)


def _codes(t: SinkhornProblem) -> Tensor:
    return t.scores.new_empty(t.scores.shape, dtype=t.dtype)


_TARGETS = "Tensor? sample_target, Tensor prototype_target"
_POTENTIAL = "Tensor? sample_target, Tensor potential"
schemas.register(
    "sinkhorn",
    f"{_SCORES}, int iterations, {_TARGETS}, ScalarType dtype",
    f"Tensor, {_POTENTIALS}",
    lambda *args: [SinkhornProblem(*args[:-1])],
    lambda t: (_codes(t), *_vectors(t)),
)
schemas.register(
    "sinkhorn_out",
    f"{_SCORES}, int iterations, {_TARGETS}, Tensor(a!) out",
    _POTENTIALS,
    lambda *args: [SinkhornProblem._make((*args[:-2], args[-2].dtype, args[-2]))],
    _vectors,
    "sinkhorn",
)
schemas.register(
    "sinkhorn_columns",
    f"{_SCORES}, Tensor? sample_target, Tensor? potential",
    "Tensor",
    lambda scores, epsilon, target, v, _: [_step(scores, epsilon, target, scores.dtype), v],
    lambda t, v: _vectors(t)[1],
)
schemas.register(
    "sinkhorn_samples",
    f"{_SCORES}, Tensor potential",
    "Tensor",
    lambda scores, epsilon, v, _: [_step(scores, epsilon, None, scores.dtype), v],
    lambda t, v: _vectors(t)[0],
)
schemas.register(
    "sinkhorn_codes",
    f"{_SCORES}, {_POTENTIAL}, ScalarType dtype",
    "Tensor, Tensor",
    lambda scores, epsilon, target, v, dtype, _: [_step(scores, epsilon, target, dtype), v],
    lambda t, v: (_codes(t), _vectors(t)[0]),
)
schemas.register(
    "sinkhorn_codes_out",
    f"{_SCORES}, {_POTENTIAL}, Tensor(a!) out",
    "Tensor",
    lambda scores, epsilon, target, v, out, _: [_step(scores, epsilon, target, out), v],
    lambda t, v: _vectors(t)[0],
    "sinkhorn_codes",
)
schemas.register(
    "sinkhorn_scores",
    "Tensor z, Tensor prototypes",
    "Tensor",
    lambda z, prototypes, _: [z, prototypes],
    lambda z, prototypes: z.new_empty(z.shape[0], prototypes.shape[0], dtype=accumulation_dtype(z.dtype)),
)
