# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that hold integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pycl.core.problem import check_whole
from pycl.core.tracing import observed


def check_integers(name: str, x: Tensor, shape: Sequence[int], wanted: str, like: Tensor) -> Tensor:
    """Integers as int64, of a shape and on the device of ``like``; raises where they do not fit."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    check_whole(name, x)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the embeddings are, got {x.device}")
    return x.to(torch.int64)


def check_below(name: str, x: Tensor, size: int, what: str) -> None:
    """Raise unless all are at least 0 and less than ``size``; a device reports it with its next error."""
    check_all(((x >= 0) & (x < size)).all(), f"{name} must be at least 0 and less than {size}, {what}")


def check_all(holds: Tensor, message: str) -> None:
    """Raise unless a tensor of one bool holds. Nobody waits for a device, whose error comes later."""
    if observed():
        return
    if holds.device.type != "cpu":
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(message)
