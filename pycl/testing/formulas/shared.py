# SPDX-License-Identifier: Apache-2.0
"""What formulas share."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = float | Tensor


def unit(x: Tensor) -> Tensor:
    norm: Tensor = x.norm(dim=-1, keepdim=True)
    return x / norm.clamp_min(1e-12)


def log_sum(logits: Tensor, allowed: Tensor) -> Tensor:
    """log sum exp over the allowed entries of each row; 0 where there is none."""
    empty = ~allowed.any(-1, keepdim=True)
    return logits.masked_fill(~allowed & ~empty, -torch.inf).logsumexp(-1).masked_fill(empty.squeeze(-1), 0)


def others(n: int, like: Tensor) -> Tensor:
    """All pairs but those of a point with itself, bool [n, n]."""
    return ~torch.eye(n, dtype=torch.bool, device=like.device)


def diagonal(logits: Tensor) -> Tensor:
    """The class of every row when candidate i is the positive of anchor i."""
    return torch.arange(len(logits), device=logits.device)
