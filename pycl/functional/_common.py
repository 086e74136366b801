# SPDX-License-Identifier: Apache-2.0
"""What losses share: checks of the arguments, temperature to logit scale, normalised embeddings."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pycl.core.problem import accumulation_dtype, check_whole
from pycl.core.tracing import observed
from pycl.core.unit import widen as widen
from pycl.ops import unit as operators

Views: TypeAlias = Tensor | Sequence[Tensor]
Scalar: TypeAlias = float | Tensor


def as_scalar(name: str, value: Scalar) -> Scalar:
    """A python float, or a 0-d tensor of at least float32 that keeps its gradient; numbers of NumPy are numbers."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor with one element, got shape {tuple(value.shape)}")
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be a real number, got {value.dtype}")
        value = widen(value) if value.is_floating_point() else value.float()
        return value if value.dim() == 0 else value.reshape(())
    if isinstance(value, (bool, np.bool_)) or not is_number(value):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    return float(value)


def is_number(value: object) -> bool:
    """A real number of Python or of NumPy, whose arrays without dimensions are numbers, too."""
    if isinstance(value, (int, float)):
        return True
    return isinstance(value, numbers.Real) or (isinstance(value, np.ndarray) and value.ndim == 0)


def check_positive(name: str, value: Scalar) -> Scalar:
    """``as_scalar`` that also refuses zero, negative and non-finite values.

    The value of a tensor is looked at where that costs nothing and disturbs nobody: on the CPU, in eager mode.
    """
    value = as_scalar(name, value)
    number = _readable(value)
    if number is not None and not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number}")
    return value


def check_weight(name: str, value: Scalar) -> Scalar:
    """``check_positive`` that allows zero."""
    value = as_scalar(name, value)
    number = _readable(value)
    if number is not None and not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {number}")
    return value


def _readable(value: Scalar) -> float | None:
    if not isinstance(value, Tensor):
        return value
    return float(value.detach()) if value.device.type == "cpu" and not observed() else None


def check_number(name: str, value: float, least: float, below: float) -> float:
    """A python number of at least ``least`` and less than ``below``."""
    if isinstance(value, (bool, np.bool_)) or not is_number(value):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least <= (number := float(value)) < below:
        raise ValueError(f"{name} must be at least {least:g} and less than {below:g}, got {number:g}")
    return number


def to_logit_scale(temperature: Scalar) -> Scalar:
    """``1 / temperature``, with the gradient of a tensor."""
    return 1.0 / check_positive("temperature", temperature)


def expand_scalar(name: str, value: Scalar, like: Tensor) -> Tensor:
    """One value per row of ``like``, in the dtype statistics of ``like`` have."""
    value = as_scalar(name, value)
    n, device, dtype = like.shape[0], like.device, accumulation_dtype(like.dtype)
    if not isinstance(value, Tensor):
        return torch.full((n,), value, dtype=dtype, device=device)
    return value.to(device, dtype).expand(n)


def check_matched(**tensors: Tensor) -> None:
    """Two sets of embeddings that belong together row by row: ``[N, d]``, N >= 1, one device."""
    (a, x), (b, y) = tensors.items()
    check_features(**tensors)
    if x.shape != y.shape:
        raise ValueError(
            f"{a} and {b} must have one and the same shape [N, d], got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def check_features(**tensors: Tensor) -> None:
    """Sets of embeddings ``[n, d]``, n >= 1, that can be multiplied: same d, same device (dtypes are promoted)."""
    first, x = next(iter(tensors.items()))
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if not t.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {t.dtype}")
        check_whole(name, t)
        if t.dim() != 2 or t.numel() == 0:
            raise ValueError(f"{name} must have shape [n, d] with n, d >= 1, got {tuple(t.shape)}")
        if t is x:
            continue
        if t.shape[1] != x.shape[1]:
            raise ValueError(f"{name} must have {x.shape[1]} features as {first} has, got shape {tuple(t.shape)}")
        if t.device != x.device:
            raise ValueError(f"{name} must be on {x.device} as {first} is, got {t.device}")


def check_together(**tensors: Tensor) -> None:
    """Two sets of embeddings of the same instances, of any widths: as many rows, one device."""
    (a, x), (b, y) = tensors.items()
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"{b} must have {x.shape[0]} rows as {a} has, got shape {tuple(y.shape)}")
    if x.device != y.device:
        raise ValueError(f"{b} must be on {x.device} as {a} is, got {y.device}")


def check_negatives(**tensors: Tensor) -> bool:
    """Queries, and negatives ``[M, d]`` of all or ``[N, M, d]`` of each query's own; whether they are its own."""
    (a, query), (b, negatives) = tensors.items()
    own = isinstance(negatives, Tensor) and negatives.dim() == 3
    if own and (negatives.shape[0] != query.shape[0] or negatives.shape[1] == 0):
        n, d = query.shape
        raise ValueError(
            f"{b} must have shape [M, {d}], shared by all queries, or [{n}, M, {d}], of each query's own, with M >= 1, "
            f"got {tuple(negatives.shape)}"
        )
    check_features(**{a: query, b: negatives[0] if own else negatives})
    return own


def check_two_views(loss: str, n_views: int) -> None:
    """For the losses that are defined on exactly two views."""
    if n_views != 2:
        raise ValueError(f"views: {loss} is defined for exactly two views, got {n_views}")


def unit(z: Tensor, normalize: bool = True) -> Tensor:
    """Embeddings in at least float32, L2-normalised as :func:`pycl.core.unit.unit` unless told otherwise."""
    return operators.unit(z) if normalize else widen(z)


def no_autocast(z: Tensor) -> torch.autocast:
    """A context in which products of float32 tensors stay float32."""
    return torch.autocast(z.device.type, enabled=False)


def logits_of_views(z: Tensor, n_views: int, scale: Scalar, normalize: bool) -> Tensor:
    """``scale <u_ai, u_bi>`` of every instance's pairs of views, [V, V, N], from its V * N points.

    The selection of all columns hands a contiguous gradient to the product. As it comes, with the instances innermost,
    torch's backward copies each instance's matrix: 88 ms of a step of 300 at [4, 4096, 128] (torch 2.13,
    findings/bmm-clones-each-matrix.sh).
    """
    u = unit(z, normalize).view(n_views, -1, z.shape[1]).transpose(0, 1)
    with no_autocast(u):
        products = torch.bmm(u, u.transpose(1, 2)).view(-1, n_views * n_views)
    every = torch.arange(n_views * n_views, device=z.device)
    return scale * products.index_select(1, every).t().view(n_views, n_views, -1)
