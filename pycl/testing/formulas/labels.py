# SPDX-License-Identifier: Apache-2.0
"""Losses of labelled points."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pycl.testing.formulas.shared import Number, log_sum, others, unit


def sup_con(views: Tensor, labels: Tensor, temperature: Number, form: str = "out") -> Tensor:
    n_views, n, _ = views.shape
    z, y = unit(views.flatten(0, 1)), labels.repeat(n_views)
    s, free = z @ z.T / temperature, others(len(z), z)
    positive = (y[:, None] == y) & free
    count = positive.sum(1)
    if form == "in":
        of_positives = log_sum(s, positive) - count.clamp(min=1).to(s.dtype).log()
    else:
        of_positives = torch.where(positive, s, 0).sum(1) / count.clamp(min=1)
    return (log_sum(s, free) - of_positives).masked_fill(count == 0, 0).view(n_views, n)


def _label_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


def multi_similarity(z: Tensor, labels: Tensor, alpha: Number = 2.0, beta: Number = 50.0, base: Number = 0.5) -> Tensor:
    s = unit(z) @ unit(z).T
    positive, negative = _label_pairs(labels)
    one = torch.zeros_like(s[:, :1])
    of_positives = torch.cat([(-alpha * (s - base)).masked_fill(~positive, -torch.inf), one], 1).logsumexp(1)
    of_negatives = torch.cat([(beta * (s - base)).masked_fill(~negative, -torch.inf), one], 1).logsumexp(1)
    return of_positives / alpha + of_negatives / beta


def circle(z: Tensor, labels: Tensor, margin: float = 0.4, gamma: float = 80.0) -> Tensor:
    s = unit(z) @ unit(z).T
    positive, negative = _label_pairs(labels)
    of_positives = -gamma * (1 + margin - s).relu().detach() * (s - (1 - margin))
    of_negatives = gamma * (s + margin).relu().detach() * (s - margin)
    exponent = _lse(of_positives, positive) + _lse(of_negatives, negative)
    return softplus(exponent, threshold=700)


def _lse(logits: Tensor, allowed: Tensor) -> Tensor:
    """log sum exp over the allowed entries of each row; of none -inf, with a gradient of 0."""
    empty = ~allowed.any(1)
    inside = logits.masked_fill(~allowed, -torch.inf)[~empty].logsumexp(1)
    return torch.full_like(logits[:, 0], -torch.inf).masked_scatter(~empty, inside)
