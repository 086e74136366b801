# SPDX-License-Identifier: Apache-2.0
"""What counts as accurate: an error budget against float64, with one table of floors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pycl.backends.registry import load

# allowed relative error where plain torch happens to be exact: some 16 roundings (float64: sums in another order)
FLOOR = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def widest(backend: str) -> torch.dtype:
    """The dtype of most digits that a backend takes."""
    return torch.float64 if torch.float64 in load(backend).DTYPES else torch.float32


def assert_as_accurate(
    got: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype, slack: float = 2.0, magnitude: float = 0.0
) -> None:
    """``max |got - truth| <= slack max |eager - truth| + FLOOR[dtype] max(max |truth|, magnitude)``.

    Args:
        got: what pycl returned.
        eager: plain torch in the same dtype; where it is not finite it grants nothing beyond the floor.
        truth: plain torch in float64.
        dtype: of the inputs.
        slack: how much worse than plain torch is still fine.
        magnitude: what the floor is relative to, where truth is a small difference of larger numbers.
    """
    assert got.shape == truth.shape, f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert truth.isfinite().all(), "the float64 reference itself is not finite"
    assert got.isfinite().all(), f"not finite: {got}"
    error, granted = _largest(got.double() - truth), _largest(eager.double() - truth)
    floor = FLOOR[dtype] * max(_largest(truth), magnitude)
    budget = (slack * granted if granted < torch.inf else 0.0) + floor
    assert error <= budget, f"error {error:.3g} > budget {budget:.3g} (plain torch {granted:.3g}, floor {floor:.3g})"


def between_logits(size: float, d: int) -> float:
    """How far apart two float32 computations of one logit ``scale <x, y>`` are at most; size: ``scale |x| |y|``.

    A sum of d products is off by ``d 2^-24 |x| |y|`` at most in whatever order it is taken, and orders differ: between
    tiles of two shapes, between a tile and its transpose, between CPUs. Both computations may then round the logit, and
    the log-sum-exp on its way from units of log 2 to nats and back. With one product for both, d is 0.
    """
    return size * (2 * d + 4) * 2.0**-24


def _largest(t: Tensor) -> float:
    return t.abs().nan_to_num(nan=torch.inf).max().item() if t.numel() else 0.0


def value_and_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], scalars: dict[str, Any], cotangent: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """``function(inputs, scalars)`` and the gradients of its weighted sum for all floating inputs, then the scalars."""
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    scalars = {name: value.detach().clone().requires_grad_() for name, value in scalars.items()}
    value = function(inputs, scalars)
    wanted = [x for x in (*inputs, *scalars.values()) if x.requires_grad]
    weighted = value.sum() if cotangent is None else (value.double() * cotangent).sum()
    # an input that is a constant of the loss has a gradient of 0
    return value.detach(), list(torch.autograd.grad(weighted, wanted, materialize_grads=True))


def cast(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype) if x.is_floating_point() else x for x in inputs]
