# SPDX-License-Identifier: Apache-2.0
"""The operators of Sinkhorn, and calls of them on a ``Transport``.

Backends are reached through the dispatcher alone: with a default device, fake tensors or a tracer their addresses would
be another device's, none, or written behind the tracer's back.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from pycl.backends import registry as backends
from pycl.core.problem import Transport, accumulation_dtype
from pycl.ops import schemas as ops

_SCORES = "Tensor scores, float epsilon"
_POTENTIALS = "Tensor, Tensor"  # of the samples and of the prototypes


def sinkhorn(t: Transport, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and the potentials of the samples and of the prototypes."""
    given, out = t[:-1], t.out
    if out is None:
        return cast("tuple[Tensor, Tensor, Tensor]", torch.ops.pycl.sinkhorn(*given, backend))
    return out, *torch.ops.pycl.sinkhorn_out(*given[:-1], out, backend)


def columns(t: Transport, potential: Tensor | None, backend: str) -> Tensor:
    """``log sum_b exp(L_bk + u_b)`` [K], ``u`` from the sample step with the prototypes' potential, or 0 without."""
    return cast("Tensor", torch.ops.pycl.sinkhorn_columns(t.scores, t.epsilon, t.sample_target, potential, backend))


def samples(t: Transport, potential: Tensor, backend: str) -> Tensor:
    """``log sum_k exp(L_bk + v_k)`` [B]."""
    return cast("Tensor", torch.ops.pycl.sinkhorn_samples(t.scores, t.epsilon, potential, backend))


def codes(t: Transport, potential: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Codes and the samples' potential from the prototypes'."""
    given = t.scores, t.epsilon, t.sample_target, potential
    if t.out is None:
        return cast("tuple[Tensor, Tensor]", torch.ops.pycl.sinkhorn_codes(*given, t.dtype, backend))
    return t.out, torch.ops.pycl.sinkhorn_codes_out(*given, t.out, backend)


def scores(z: Tensor, prototypes: Tensor, backend: str) -> Tensor:
    """``<z_b, c_k>`` [B, K] of features of one dtype."""
    return cast("Tensor", torch.ops.pycl.sinkhorn_scores(z, prototypes, backend))


def _step(scores: Tensor, epsilon: float, sample_target: Tensor | None, out: torch.dtype | Tensor) -> Transport:
    """A step reads neither how many there are nor the prototypes' target."""
    memory = out if isinstance(out, Tensor) else None
    dtype = out.dtype if isinstance(out, Tensor) else out
    return Transport(scores, epsilon, 1, sample_target, scores.new_empty(0), dtype, memory)


def _all(*args: Any) -> Any:
    *transport, backend = args
    return backends.load(backend).sinkhorn(Transport(*transport))


def _all_out(*args: Any) -> Any:
    *given, out, backend = args
    _, u, v = backends.load(backend).sinkhorn(Transport._make((*given, out.dtype, out)))
    _changed(out)
    return u, v


def _columns(scores: Tensor, epsilon: float, target: Tensor | None, potential: Tensor | None, backend: str) -> Any:
    return backends.load(backend).sinkhorn_columns(_step(scores, epsilon, target, scores.dtype), potential)


def _samples(scores: Tensor, epsilon: float, potential: Tensor, backend: str) -> Any:
    return backends.load(backend).sinkhorn_samples(_step(scores, epsilon, None, scores.dtype), potential)


def _codes(scores: Tensor, epsilon: float, target: Tensor | None, v: Tensor, dtype: torch.dtype, backend: str) -> Any:
    return backends.load(backend).sinkhorn_codes(_step(scores, epsilon, target, dtype), v)


def _codes_out(scores: Tensor, epsilon: float, target: Tensor | None, v: Tensor, out: Tensor, backend: str) -> Any:
    _, u = backends.load(backend).sinkhorn_codes(_step(scores, epsilon, target, out), v)
    _changed(out)
    return u


def _changed(out: Tensor) -> None:
    """Let autograd notice where a backward needed what was there."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _vectors(scores: Tensor) -> tuple[Tensor, Tensor]:
    new, dtype = scores.new_empty, accumulation_dtype(scores.dtype)
    return new(scores.shape[0], dtype=dtype), new(scores.shape[1], dtype=dtype)


def _scores_shape(z: Tensor, prototypes: Tensor, backend: str) -> Tensor:
    return z.new_empty(z.shape[0], prototypes.shape[0], dtype=accumulation_dtype(z.dtype))


_TARGETS = "Tensor? sample_target, Tensor prototype_target"
ops.register(
    "sinkhorn",
    f"{_SCORES}, int iterations, {_TARGETS}, ScalarType dtype",
    f"Tensor, {_POTENTIALS}",
    _all,
    lambda scores, *args: (scores.new_empty(scores.shape, dtype=args[-2]), *_vectors(scores)),
)
ops.register(
    "sinkhorn_out",
    f"{_SCORES}, int iterations, {_TARGETS}, Tensor(a!) out",
    _POTENTIALS,
    _all_out,
    lambda scores, *_: _vectors(scores),
)
ops.register(
    "sinkhorn_columns",
    f"{_SCORES}, Tensor? sample_target, Tensor? potential",
    "Tensor",
    _columns,
    lambda scores, *_: _vectors(scores)[1],
)
ops.register(
    "sinkhorn_samples", f"{_SCORES}, Tensor potential", "Tensor", _samples, lambda scores, *_: _vectors(scores)[0]
)
ops.register(
    "sinkhorn_codes",
    f"{_SCORES}, Tensor? sample_target, Tensor potential, ScalarType dtype",
    "Tensor, Tensor",
    _codes,
    lambda scores, *args: (scores.new_empty(scores.shape, dtype=args[-2]), _vectors(scores)[0]),
)
ops.register(
    "sinkhorn_codes_out",
    f"{_SCORES}, Tensor? sample_target, Tensor potential, Tensor(a!) out",
    "Tensor",
    _codes_out,
    lambda scores, *_: _vectors(scores)[0],
)
ops.register(
    "sinkhorn_scores",
    "Tensor z, Tensor prototypes",
    "Tensor",
    lambda z, prototypes, backend: backends.load(backend).sinkhorn_scores(z, prototypes),
    _scores_shape,
)
