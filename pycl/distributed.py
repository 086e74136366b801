# SPDX-License-Identifier: Apache-2.0
"""What ranks of a ``torch.distributed`` group tell each other; without a group nothing is said."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def check_group(group: dist.ProcessGroup | None) -> None:
    """``None``, or a process group this rank belongs to."""
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be None or a torch.distributed process group, got {type(group).__name__}")


def check_agree(group: dist.ProcessGroup | None, device: torch.device, **values: float) -> None:
    """Raise ValueError on every rank unless each value is the same on all of them."""
    if group is None:
        return
    numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    extremes = torch.stack([numbers, -numbers])
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group)
    high, low = extremes[0].tolist(), (-extremes[1]).tolist()
    for name, most, least in zip(values, high, low, strict=True):
        if most != least:
            raise ValueError(f"{name} must be the same on all ranks of the group, got {least:g} to {most:g}")


def total(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over the ranks."""
    if group is not None:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.SUM, group)
    return value


def merge_lse(lse: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Log-sum-exps over all ranks from each rank's own; NaN and infinity on one rank become NaN on all."""
    if group is None:
        return lse
    peak = lse.clone()
    dist.all_reduce(peak, dist.ReduceOp.MAX, group)
    peak = peak.masked_fill(peak == -torch.inf, 0)
    return total((lse - peak).exp(), group).log() + peak
