# SPDX-License-Identifier: Apache-2.0
"""What the dense forms of the cookbook share: random inputs in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = Callable[[int, int], list[Any]]  # of n rows with d features


def points(n: int, d: int) -> Tensor:
    """Lengths differ, so that a normalisation that is missing shows."""
    return torch.randn(n, d, dtype=torch.float64) + 0.3


def numbers(n: int, least: float) -> Tensor:
    return torch.rand(n, dtype=torch.float64) + least


def few_labels(n: int) -> Tensor:
    """Of five classes."""
    return torch.randint(5, (n,))


def many_labels(n: int) -> Tensor:
    """Of about as many classes as points: some have one point, and there are about as many positive pairs as points."""
    return torch.randint(n, (n,))


def pairs(n: int, d: int) -> list[Any]:
    return [points(n, d), points(n, d)]


def with_queue(n: int, d: int) -> list[Any]:
    return [*pairs(n, d), points(n + 16, d)]


def labelled(n: int, d: int) -> list[Any]:
    return [points(n, d), few_labels(n)]


def sparsely_labelled(n: int, d: int) -> list[Any]:
    return [points(n, d), many_labels(n)]


def with_prototypes(n: int, d: int) -> list[Any]:
    """As many prototypes as points, some without any."""
    return [points(n, d), many_labels(n), points(n, d)]


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.bool)


def lse(logits: Tensor, allowed: Tensor) -> Tensor:
    """log sum exp over the allowed entries of each row, of which there is one at least."""
    return logits.masked_fill(~allowed, -torch.inf).logsumexp(1)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y).square().sum(2)
