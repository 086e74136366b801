# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn as published, in the linear domain, sharing no code with pycl; and SwAV's loss from stored codes."""

from __future__ import annotations

import torch
from torch import Tensor


def published(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    sample_marginal: Tensor | None = None,
    prototype_marginal: Tensor | None = None,
) -> Tensor:
    """Codes [B, K]: scale exp(scores / epsilon) to the marginals in turn, prototypes first; in the scores' dtype."""
    plan = torch.exp(scores / epsilon).T
    plan = plan / plan.sum()
    n_prototypes, n_samples = plan.shape
    m = torch.full((n_prototypes,), 1 / n_prototypes) if prototype_marginal is None else prototype_marginal
    a = torch.full((n_samples,), 1 / n_samples) if sample_marginal is None else sample_marginal
    m, a = m.to(plan), a.to(plan)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True) * m[:, None]
        plan = plan / plan.sum(0, keepdim=True) * a
    return (plan / a).T


def swav_from_codes(
    crops: list[Tensor],
    prototypes: Tensor,
    temperature: float | Tensor = 0.1,
    epsilon: float = 0.05,
    code_crops: tuple[int, ...] = (0, 1),
    queue: Tensor | None = None,
) -> Tensor:
    """One term per sample: the cross entropy of every other crop against each code crop's codes."""
    terms = crops[0].new_zeros(len(crops[0]))
    for k, i in enumerate(code_crops):
        samples = crops[i].detach()
        rows = samples if queue is None else torch.cat([queue[k].to(samples), samples])
        codes = published(rows @ prototypes.detach().T, epsilon)[-len(samples) :]
        for v, crop in enumerate(crops):
            if v != i:
                terms = terms - (codes * torch.log_softmax(crop @ prototypes.T / temperature, 1)).sum(1)
    return terms / (len(code_crops) * (len(crops) - 1))
