# SPDX-License-Identifier: Apache-2.0
"""Dense forms of docs/cookbook/clusters.md."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from helpers.cookbook.case import Inputs, few_labels, many_labels, numbers, pairs, points, squared_distances, with_queue
from pycl.testing.formulas import Number, info_nce, nt_xent, unit


def moco_v3(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: Number = 0.2) -> Tensor:
    first = info_nce(q1, k2.detach(), temperature=temperature)
    return 2 * temperature * (first + info_nce(q2, k1.detach(), temperature=temperature)).mean()


def ressl(
    query: Tensor, teacher_query: Tensor, queue: Tensor, temperature: Number = 0.1, teacher_temperature: Number = 0.04
) -> Tensor:
    w = unit(queue)
    target = (unit(teacher_query) @ w.T / teacher_temperature).softmax(1).detach()
    return cross_entropy(unit(query) @ w.T / temperature, target)


def mean_shift(query: Tensor, key: Tensor, queue: Tensor, k: int = 5) -> Tensor:
    keys = torch.cat([unit(key), unit(queue)]).detach()
    nearest = (-squared_distances(unit(key), keys)).topk(k).indices
    return (unit(query)[:, None] - keys[nearest]).square().sum(2).mean()


def instance_nce(
    query: Tensor, key: Tensor, noise: Tensor, size: int = 50000, log_z: float = 10.0, temperature: Number = 0.07
) -> Tensor:
    q, log_odds = unit(query), log_z + math.log(len(noise) / size)
    own = (q * unit(key)).sum(1) / temperature - log_odds
    others = q @ unit(noise).T / temperature - log_odds
    return -(logsigmoid(own) + logsigmoid(-others).sum(1)).mean()


def local_aggregation(
    query: Tensor, bank: Tensor, clusters: Tensor, bank_clusters: Tensor, k: int = 20, temperature: Number = 0.07
) -> Tensor:
    near, index = (unit(query) @ unit(bank).T / temperature).topk(k)
    own = bank_clusters[index] == clusters[:, None]
    terms = [s.logsumexp(0) - s[close].logsumexp(0) for s, close in zip(near, own, strict=True) if close.any()]
    return torch.stack(terms).sum() / len(query)


def dino(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    temperature: Number = 0.1,
    teacher_temperature: Number = 0.04,
) -> Tensor:
    target = ((unit(teacher) @ unit(teacher_prototypes).T - centre) / teacher_temperature).softmax(1).detach()
    return cross_entropy(unit(student) @ unit(prototypes).T / temperature, target)


def msn(
    student: Tensor,
    target: Tensor,
    prototypes: Tensor,
    weight: float = 1.0,
    temperature: Number = 0.1,
    teacher_temperature: Number = 0.025,
) -> Tensor:
    s = unit(student) @ unit(prototypes).T / temperature
    wanted = (unit(target) @ unit(prototypes).T / teacher_temperature).softmax(1).detach()
    mean = s.softmax(1).mean(0)
    return cross_entropy(s, wanted) + weight * (mean * mean.log()).sum()


def contrastive_clustering(p: Tensor, q: Tensor, temperature: Number = 1.0) -> Tensor:
    entropies = [-(m * m.log()).sum() for m in (p.sum(0) / len(p), q.sum(0) / len(q))]
    return nt_xent(torch.stack([p.T, q.T]), temperature).mean() - sum(entropies)


def info_graph(nodes: Tensor, graph_of: Tensor, graphs: Tensor) -> Tensor:
    s, own = nodes @ graphs.T, graph_of[:, None] == torch.arange(len(graphs))
    return -logsigmoid(s[own]).mean() - logsigmoid(-s[~own]).mean()


def hsic(x: Tensor, y: Tensor, sigma: float = 1.0) -> Tensor:
    k, l = ((-squared_distances(z, z) / (2 * sigma**2)).exp() for z in (x, y))
    centring = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    return (k @ centring @ l @ centring).trace() / len(x) ** 2


def w_mse(x: Tensor, y: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(torch.cat([x, y]).T.cov())
    centre = torch.cat([x, y]).mean(0)
    u, v = (unit((z - centre) @ factor.inverse().T) for z in (x, y))
    return (u - v).square().sum(1).mean()


def _banked(n: int, d: int) -> list[Any]:
    return [points(n, d), points(n + 16, d), few_labels(n), few_labels(n + 16)]


def _two_heads(n: int, d: int) -> list[Any]:
    return [*pairs(n, d), points(n + 16, d), points(n + 16, d), numbers(n + 16, -0.5)]


INPUTS: dict[str, Inputs] = {
    "moco_v3": lambda n, d: [*pairs(n, d), *pairs(n, d)],
    "ressl": with_queue,
    "mean_shift": with_queue,
    "instance_nce": with_queue,
    "local_aggregation": _banked,
    "dino": _two_heads,
    "msn": lambda n, d: [*pairs(n, d), points(n + 16, d)],
    "contrastive_clustering": lambda n, _: [points(n, 5).softmax(1), points(n, 5).softmax(1)],
    "info_graph": lambda n, d: [points(n, d), many_labels(n), points(n, d)],
    "hsic": pairs,
    "w_mse": pairs,
}
