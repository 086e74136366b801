# SPDX-License-Identifier: Apache-2.0
"""Dense forms of docs/cookbook/labels.md."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from helpers.cookbook.case import (
    Inputs,
    eye,
    few_labels,
    labelled,
    lse,
    many_labels,
    numbers,
    pairs,
    points,
    sparsely_labelled,
    squared_distances,
    with_prototypes,
)
from pycl.testing.formulas import Number, sup_con, unit


def _mean_of(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of each row; 0 where all weights are."""
    total = weights.sum(1)
    return (values * weights).sum(1) / torch.where(total > 0, total, 1)


def sincere(z: Tensor, labels: Tensor, temperature: Number = 0.1) -> Tensor:
    s, same = unit(z) @ unit(z).T / temperature, labels[:, None] == labels
    terms = []
    for i in range(len(z)):
        losses = [
            torch.cat([s[i, p : p + 1], s[i, ~same[i]]]).logsumexp(0) - s[i, p]
            for p in range(len(z))
            if same[i, p] and p != i
        ]
        terms.append(torch.stack(losses).mean() if losses else s[i, i] * 0)
    return torch.stack(terms).mean()


def hi_mul_con(z: Tensor, levels: Tensor, temperature: Number = 0.1) -> Tensor:
    return sum(math.exp(1 / (k + 1)) * sup_con(z[None], y, temperature).mean() for k, y in enumerate(levels)) / len(
        levels
    )


def unicl(image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor, temperature: Number = 0.07) -> Tensor:
    s = unit(image) @ unit(text).T / temperature
    target = (image_labels[:, None] == text_labels).to(s.dtype)
    return (
        cross_entropy(s, target / target.sum(1, keepdim=True))
        + cross_entropy(s.T, target.T / target.T.sum(1, keepdim=True))
    ) / 2


def soft_nearest_neighbour(z: Tensor, labels: Tensor, temperature: Number = 1.0) -> Tensor:
    s, others = -squared_distances(z, z) / temperature, ~eye(len(z))
    same = (labels[:, None] == labels) & others
    kept = same.any(1)
    return (lse(s, others)[kept] - lse(s[kept], same[kept])).sum() / len(z)


def shares_any(z: Tensor, tags: Tensor, temperature: Number = 0.1) -> Tensor:
    s, others = unit(z) @ unit(z).T / temperature, ~eye(len(z))
    positive = ((tags[:, None] & tags).sum(2) > 0) & others
    terms = lse(s, others) - _mean_of(s, positive.to(s.dtype))
    return terms.masked_fill(~positive.any(1), 0).mean()


def shared_tags(z: Tensor, tags: Tensor, temperature: Number = 0.1) -> Tensor:
    s, others = unit(z) @ unit(z).T / temperature, ~eye(len(z))
    weights = (tags[:, None] * tags).sum(2) * others
    terms = lse(s, others) - _mean_of(s, weights.to(s.dtype))
    return terms.masked_fill(~weights.any(1), 0).mean()


def y_aware(query: Tensor, key: Tensor, y: Tensor, sigma: float = 1.0, temperature: Number = 0.1) -> Tensor:
    s = unit(query) @ unit(key).T / temperature
    weights = (-squared_distances(y, y) / (2 * sigma**2)).exp().detach()
    return (s.logsumexp(1) - _mean_of(s, weights)).mean()


def x_clr(
    query: Tensor, key: Tensor, captions: Tensor, temperature: Number = 0.1, teacher_temperature: Number = 0.1
) -> Tensor:
    target = (unit(captions) @ unit(captions).T / teacher_temperature).softmax(1).detach()
    return cross_entropy(unit(query) @ unit(key).T / temperature, target)


def balanced_contrastive(z: Tensor, labels: Tensor, prototypes: Tensor, temperature: Number = 0.1) -> Tensor:
    everything, classes = torch.cat([z, prototypes]), torch.arange(len(prototypes))
    y = torch.cat([labels, classes])
    s = unit(z) @ unit(everything).T / temperature
    others = torch.ones_like(s, dtype=torch.bool).fill_diagonal_(False)
    terms = []
    for i in range(len(z)):
        means = [s[i, (y == c) & others[i]].exp().mean() for c in classes]
        terms.append(torch.stack(means).sum().log() - s[i, (y == labels[i]) & others[i]].mean())
    return torch.stack(terms).mean()


def cos_face(z: Tensor, labels: Tensor, prototypes: Tensor, margin: float = 0.35, scale: Number = 64.0) -> Tensor:
    cosines = unit(z) @ unit(prototypes).T
    return cross_entropy(scale * (cosines - margin * one_hot(labels, len(prototypes)).to(z.dtype)), labels)


def arc_face(z: Tensor, labels: Tensor, prototypes: Tensor, margin: float = 0.5, scale: Number = 64.0) -> Tensor:
    angles = (unit(z) @ unit(prototypes).T).clamp(-1 + 1e-7, 1 - 1e-7).acos()
    return cross_entropy(scale * (angles + margin * one_hot(labels, len(prototypes)).to(z.dtype)).cos(), labels)


def curricular_face(
    z: Tensor, labels: Tensor, prototypes: Tensor, t: float = 0.3, margin: float = 0.5, scale: Number = 64.0
) -> Tensor:
    cosines = unit(z) @ unit(prototypes).T
    own = one_hot(labels, len(prototypes)).bool()
    positive = (cosines[own].acos() + margin).cos()
    hard = cosines > positive[:, None]
    return cross_entropy(
        scale * torch.where(own, positive[:, None], torch.where(hard, cosines * (t + cosines), cosines)), labels
    )


def logit_adjusted(z: Tensor, labels: Tensor, prototypes: Tensor, prior: Tensor) -> Tensor:
    return cross_entropy(z @ prototypes.T + prior.log(), labels)


def _tagged(n: int, d: int) -> list[Any]:
    return [points(n, d), (torch.rand(n, 6) < 0.15).long()]


def _levels(n: int, d: int) -> list[Any]:
    fine = many_labels(n) // 3
    return [points(n, d), torch.stack([fine, fine // 2, fine // 4])]


def _same_labels(n: int) -> tuple[Tensor, Tensor]:
    """Of images and of texts: every label is on both sides."""
    labels = few_labels(n)
    return labels, labels[torch.randperm(n)]


INPUTS: dict[str, Inputs] = {
    "sincere": labelled,
    "hi_mul_con": _levels,
    "unicl": lambda n, d: [*pairs(n, d), *_same_labels(n)],
    "soft_nearest_neighbour": sparsely_labelled,
    "shares_any": _tagged,
    "shared_tags": _tagged,
    "y_aware": lambda n, d: [*pairs(n, d), points(n, 2)],
    "x_clr": lambda n, d: [*pairs(n, d), points(n, d - 2)],
    "balanced_contrastive": with_prototypes,
    "cos_face": with_prototypes,
    "arc_face": with_prototypes,
    "curricular_face": with_prototypes,
    "logit_adjusted": lambda n, d: [*with_prototypes(n, d), numbers(n, 0.1)],
}
