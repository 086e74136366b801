# SPDX-License-Identifier: Apache-2.0
"""Dense forms of docs/cookbook/metric.md."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from helpers.cookbook.case import Inputs, eye, labelled, pairs, sparsely_labelled, squared_distances, with_prototypes
from pycl.testing.formulas import Number, unit


def _sets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positives and negatives, bool [N, N]."""
    same = labels[:, None] == labels
    return same & ~eye(len(labels)), ~same


def _pairs(labels: Tensor) -> list[tuple[int, int]]:
    return [(a, p) for a, p in _sets(labels)[0].nonzero().tolist()]


def _one_plus(logits: Tensor, allowed: Tensor) -> Tensor:
    """log(1 + sum of exponentials over the allowed entries) of each row."""
    zero = torch.zeros_like(logits[:, :1])
    return torch.cat([zero, logits.masked_fill(~allowed, -torch.inf)], 1).logsumexp(1)


def triplet_batch_hard(z: Tensor, labels: Tensor, margin: float = 0.2) -> Tensor:
    distances, (positive, negative) = squared_distances(unit(z), unit(z)), _sets(labels)
    terms = [
        (margin + distances[i, positive[i]].max() - distances[i, negative[i]].min()).relu()
        for i in range(len(z))
        if positive[i].any()
    ]
    return torch.stack(terms).sum() / len(z)


def triplet_batch_all(z: Tensor, labels: Tensor, margin: float = 0.2) -> Tensor:
    cosines, (positive, negative) = unit(z) @ unit(z).T, _sets(labels)
    terms = (margin + cosines[:, None] - cosines[:, :, None]).relu()
    terms = terms[positive[:, :, None] & negative[:, None]]
    return terms.sum() / (terms > 0).sum()


def triplet_semi_hard(z: Tensor, labels: Tensor, margin: float = 0.2) -> Tensor:
    cosines, (_, negative) = unit(z) @ unit(z).T, _sets(labels)
    terms = []
    for a, p in _pairs(labels):
        further = cosines[a, negative[a] & (cosines[a] <= cosines[a, p])]
        terms.append((margin + further.max() - cosines[a, p]).relu() if len(further) else cosines[a, p] * 0)
    return torch.stack(terms).mean()


def contrastive_pairs(z: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    squared, (positive, negative) = squared_distances(z, z), _sets(labels)
    return (squared[positive].sum() + (margin - squared[negative].sqrt()).relu().square().sum()) / len(z)


def margin_loss(z: Tensor, labels: Tensor, beta: Tensor, margin: float = 0.2) -> Tensor:
    squared, (positive, negative) = squared_distances(unit(z), unit(z)), _sets(labels)
    far, near = margin + squared[positive].sqrt() - beta, margin - squared[negative].sqrt() + beta
    terms = torch.cat([far, near]).relu()
    return terms.sum() / (terms > 0).sum()


def lifted_structure(z: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    squared, (_, negative) = squared_distances(z, z), _sets(labels)
    terms = []
    for i, j in _pairs(labels):
        of_negatives = torch.cat([squared[i, negative[i]], squared[j, negative[j]]]).sqrt()
        terms.append(((margin - of_negatives).logsumexp(0) + squared[i, j].sqrt()).relu() ** 2)
    return torch.stack(terms).mean() / 2


def n_pair(x: Tensor, y: Tensor, weight: float = 0.02) -> Tensor:
    norms = ((x * x).sum() + (y * y).sum()) / len(x)
    return cross_entropy(x @ y.T, torch.arange(len(x))) + weight * norms


def angular(x: Tensor, y: Tensor, alpha: float = math.radians(40)) -> Tensor:
    x, y, c = unit(x), unit(y), math.tan(alpha) ** 2
    s = 4 * c * (x + y) @ y.T - 2 * (1 + c) * (x * y).sum(1, keepdim=True)
    return _one_plus(s, ~eye(len(x))).mean()


def tuplet_margin(z: Tensor, labels: Tensor, slack: float = 0.1, scale: Number = 64.0) -> Tensor:
    cosines, (_, negative) = unit(z) @ unit(z).T, _sets(labels)
    terms = []
    for a, p in _pairs(labels):
        s = scale * (cosines[a] - (cosines[a, p].acos() - slack).cos())
        terms.append(_one_plus(s[None], negative[a][None])[0])
    return torch.stack(terms).mean()


def multi_similarity_mined(
    z: Tensor, labels: Tensor, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, eps: float = 0.1
) -> Tensor:
    cosines, (positive, negative) = unit(z) @ unit(z).T, _sets(labels)
    most = cosines.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    least = cosines.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    of_positives = _one_plus(-alpha * (cosines - base), positive & (cosines < most + eps))
    of_negatives = _one_plus(beta * (cosines - base), negative & (cosines > least - eps))
    return (of_positives / alpha + of_negatives / beta).mean()


def proxy_anchor(z: Tensor, labels: Tensor, proxies: Tensor, margin: float = 0.1, scale: Number = 32.0) -> Tensor:
    cosines, own = unit(proxies) @ unit(z).T, torch.arange(len(proxies))[:, None] == labels
    of_positives = _one_plus(-scale * (cosines - margin), own)[own.any(1)]
    return of_positives.mean() + _one_plus(scale * (cosines + margin), ~own).mean()


def proxy_nca(z: Tensor, labels: Tensor, proxies: Tensor) -> Tensor:
    distances, own = squared_distances(unit(z), unit(proxies)), labels[:, None] == torch.arange(len(proxies))
    others = (-distances).exp() * ~own
    return -((-distances[own]).exp() / others.sum(1)).log().mean()


def smooth_ap(z: Tensor, labels: Tensor, temperature: Number = 0.01) -> Tensor:
    cosines, (positive, negative) = unit(z) @ unit(z).T, _sets(labels)
    precisions = []
    for i in range(len(z)):
        if not positive[i].any():
            continue
        of_anchor = []
        for p in positive[i].nonzero()[:, 0]:
            g = ((cosines[i] - cosines[i, p]) / temperature).sigmoid()
            others = positive[i].clone()
            others[p] = False
            rank = 1 + g[others].sum()
            of_anchor.append(rank / (rank + g[negative[i]].sum()))
        precisions.append(torch.stack(of_anchor).mean())
    return 1 - torch.stack(precisions).mean()


def fast_ap(z: Tensor, labels: Tensor, bins: int = 10) -> Tensor:
    squared, (positive, _) = squared_distances(unit(z), unit(z)), _sets(labels)
    centres = torch.linspace(0, 4, bins + 1, dtype=z.dtype)
    soft = (1 - (squared[:, :, None] - centres).abs() / (4 / bins)).relu()
    of_positives, of_all = (soft * positive[:, :, None]).sum(1), (soft * ~eye(len(z))[:, :, None]).sum(1)
    terms = []
    for i in range(len(z)):
        if positive[i].any():
            total = torch.cumsum(of_all[i], 0)
            kept = total > 0
            share = of_positives[i] * torch.cumsum(of_positives[i], 0)
            terms.append((share[kept] / total[kept]).sum() / positive[i].sum())
    return 1 - torch.stack(terms).mean()


INPUTS: dict[str, Inputs] = {
    "triplet_batch_hard": sparsely_labelled,
    "triplet_batch_all": sparsely_labelled,
    "triplet_semi_hard": sparsely_labelled,
    "contrastive_pairs": sparsely_labelled,
    "margin_loss": lambda n, d: [*labelled(n, d), torch.tensor(1.2, dtype=torch.float64)],
    "lifted_structure": sparsely_labelled,
    "n_pair": pairs,
    "angular": pairs,
    "tuplet_margin": sparsely_labelled,
    "multi_similarity_mined": sparsely_labelled,
    "proxy_anchor": with_prototypes,
    "proxy_nca": with_prototypes,
    "smooth_ap": sparsely_labelled,
    "fast_ap": sparsely_labelled,
}
