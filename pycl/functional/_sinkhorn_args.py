# SPDX-License-Identifier: Apache-2.0
"""Checks of what Sinkhorn is given: scores, its numbers and its marginals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycl.core.problem import FLOATS, accumulation_dtype
from pycl.core.tracing import log, observed
from pycl.distributed.ranks import all_reduce_sum
from pycl.engine.validation import check_count
from pycl.functional._common import Scalar, as_scalar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SUM_TOLERANCE = 1e-3  # of a marginal: that of a million float32 roundings


def check_scores(scores: Tensor, dtype: torch.dtype | None, may_be_empty: bool) -> None:
    """``[B, K]`` in floating point with something in it, and a dtype its codes can have."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a tensor, got {type(scores).__name__}")
    if scores.dtype not in FLOATS:
        raise TypeError(f"scores must be one of {', '.join(map(str, FLOATS))}, got {scores.dtype}")
    if scores.dim() != 2 or scores.shape[1] == 0 or (scores.shape[0] == 0 and not may_be_empty):
        raise ValueError(f"scores must have shape [B, K] with B, K >= 1, got {tuple(scores.shape)}")
    if dtype not in (None, scores.dtype, torch.float32):
        raise ValueError(f"dtype must be None, torch.float32 or that of the scores, {scores.dtype}, got {dtype}")


def check_out(out: Tensor, scores: Tensor, dtype: torch.dtype | None) -> None:
    """Memory for codes of these scores, beside them or the very same."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor, got {type(out).__name__}")
    wanted = list(dict.fromkeys((scores.dtype, torch.float32))) if dtype is None else [dtype]
    if out.dtype not in wanted:
        raise ValueError(f"out must be one of {', '.join(map(str, wanted))}, got {out.dtype}")
    if out.shape != scores.shape or not out.is_contiguous():
        raise ValueError(f"out must be contiguous with shape {tuple(scores.shape)}, got {tuple(out.shape)}")
    if out.device != scores.device:
        raise ValueError(f"out must be on {scores.device} as scores is, got {out.device}")
    itself = out.data_ptr() == scores.data_ptr() and out.dtype == scores.dtype and scores.is_contiguous()
    if out.untyped_storage().data_ptr() == scores.untyped_storage().data_ptr() and not itself:
        raise ValueError("out must be scores itself or share no memory with it, got another view of its storage")


def _number(name: str, value: Scalar) -> float:
    value = as_scalar(name, value)
    return float(value.detach()) if isinstance(value, Tensor) else value


def check_epsilon(name: str, value: Scalar) -> float:
    """A positive, finite number."""
    if not 0 < (number := _number(name, value)) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number}")
    return number


def check_penalty(name: str, value: Scalar) -> float:
    """A number that is not negative, maybe infinite."""
    if not (number := _number(name, value)) >= 0:
        raise ValueError(f"{name} must be >= 0, or infinite to meet the marginal, got {number}")
    return number


def check_iterations(value: int) -> int:
    """How many prototype steps there are: an integer from 1 on."""
    return check_count("iterations", value)


def check_marginal(name: str, marginal: Tensor, n: int, like: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """``[n]`` positive entries with a sum of 1, in the accumulation dtype; ranks of a group each bring a part."""
    if not isinstance(marginal, Tensor) or not marginal.is_floating_point():
        given = getattr(marginal, "dtype", type(marginal).__name__)
        raise TypeError(f"{name} must be a floating-point tensor, got {given}")
    if marginal.shape != (n,):
        raise ValueError(f"{name} must have shape [{n}], got {tuple(marginal.shape)}")
    if marginal.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the rest is, got {marginal.device}")
    marginal = marginal.detach().to(accumulation_dtype(like.dtype))
    if observed():  # there are no values to look at
        return marginal
    positive = bool(((marginal > 0) & marginal.isfinite()).all())
    # NaN from a rank with bad entries: then all ranks raise, and none waits for another
    mine = marginal.sum(dtype=torch.float64) if positive else like.new_tensor(torch.nan, dtype=torch.float64)
    of_all = all_reduce_sum(mine, group).item()
    if not positive:
        raise ValueError(f"{name} must have positive, finite entries, got {marginal.min().item():g} as the smallest")
    if not abs(of_all - 1) <= SUM_TOLERANCE:
        raise ValueError(f"{name} must sum to 1, got {of_all:g}")
    return marginal


def log_targets(
    sample_marginal: Tensor | None,
    prototype_marginal: Tensor | None,
    n_samples: int,
    n_prototypes: int,
    like: Tensor,
    group: ProcessGroup | None,
) -> tuple[Tensor | None, Tensor]:
    """``log(B a)`` [B], None for uniform, and ``log(B m)`` [K]; B counts the samples of all ranks."""
    mass: float = n_samples
    if group is not None:
        mass = all_reduce_sum(like.new_tensor(mass, dtype=torch.float64), group).item()
        if mass == 0:
            raise ValueError("scores must have a row on some rank of the group, got none")
    sample_target = None
    if sample_marginal is not None:
        sample_target = (check_marginal("sample_marginal", sample_marginal, n_samples, like, group) * mass).log()
    if prototype_marginal is not None:
        prototype_target = (check_marginal("prototype_marginal", prototype_marginal, n_prototypes, like) * mass).log()
    else:
        prototype_target = uniform_target(mass, n_prototypes, like)
    return sample_target, prototype_target


def uniform_target(mass: float | Tensor, n_prototypes: int, like: Tensor) -> Tensor:
    """``log(B m)`` [K] of equal shares of a mass B."""
    share, dtype = log(mass / n_prototypes, like), accumulation_dtype(like.dtype)
    if isinstance(share, Tensor):
        return share.to(dtype).expand(n_prototypes).contiguous()
    return torch.full((n_prototypes,), share, dtype=dtype, device=like.device)
