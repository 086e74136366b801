# SPDX-License-Identifier: Apache-2.0
"""The operators that bring rows to unit length in one pass, and which tensors they are for."""

from __future__ import annotations

import os
from typing import cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pycl.backends import registry
from pycl.core import unit as formula
from pycl.core.problem import accumulation_dtype
from pycl.core.tracing import needs_dispatch
from pycl.ops import schemas
from pycl.ops.autograd import UnitFunction, apply
from pycl.ops.schemas import operators

BACKEND = "cpu"  # the one that has them


def unit(z: Tensor) -> Tensor:
    """:func:`pycl.core.unit.unit` of embeddings [..., d]: one operator on a CPU, where its one pass is eager."""
    if not _has_operator(z):
        return formula.unit(z)
    if z.requires_grad and torch.is_grad_enabled():
        return cast("Tensor", apply(UnitFunction, z, BACKEND))
    return cast("Tensor", operators.unit(z, BACKEND))


def _has_operator(z: Tensor) -> bool:
    """A transform, a tangent and a tensor of another class have rules for the operators of the formula alone.

    Where ``$PYCL_BACKEND`` names another backend, nothing of this one is to run.
    """
    return (
        not needs_dispatch((z,))
        and forward_ad._current_level < 0
        and z.device.type == BACKEND
        and z.dim() > 0
        and z.numel() > 0
        and os.environ.get("PYCL_BACKEND") in (None, "", BACKEND)
        and registry.why_not(BACKEND, BACKEND, z.dtype, "unit") is None
    )


schemas.register(
    "unit",
    "Tensor z",
    "Tensor",
    lambda z, _: [z],
    lambda z: z.new_empty(z.shape, dtype=accumulation_dtype(z.dtype)),
)
schemas.register(
    "unit_backward",
    "Tensor z, Tensor d_unit",
    "Tensor",
    lambda z, d_unit, _: [z, d_unit],
    lambda z, d_unit: z.new_empty(z.shape),
)
