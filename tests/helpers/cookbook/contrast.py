# SPDX-License-Identifier: Apache-2.0
"""Dense forms of docs/cookbook/contrast.md."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, softplus

from helpers.cookbook.case import Inputs, eye, many_labels, numbers, pairs, points, squared_distances, with_queue
from pycl.testing.formulas import Number, unit


def info_nce_ids(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor, temperature: Number = 0.05) -> Tensor:
    s = unit(query) @ unit(key).T / temperature
    allowed = (query_ids[:, None] != key_ids) | eye(len(s))
    return cross_entropy(s.masked_fill(~allowed, -torch.inf), torch.arange(len(s)))


def false_negative_elimination(query: Tensor, key: Tensor, threshold: float = 0.7, temperature: Number = 0.1) -> Tensor:
    cosines = unit(query) @ unit(key).T
    allowed = (cosines <= threshold) | eye(len(query))
    return cross_entropy((cosines / temperature).masked_fill(~allowed, -torch.inf), torch.arange(len(query)))


def am_info_nce(query: Tensor, key: Tensor, margin: float = 0.3, temperature: Number = 0.1) -> Tensor:
    s = (unit(query) @ unit(key).T - margin * eye(len(query)).to(query.dtype)) / temperature
    return cross_entropy(s, torch.arange(len(query)))


def ranking_info_nce(
    z: Tensor, coarse: Tensor, fine: Tensor, temperature: Number = 0.1, coarse_temperature: Number = 0.2
) -> Tensor:
    cosines, others = unit(z) @ unit(z).T, ~eye(len(z))
    best = (fine[:, None] == fine) & others
    good = (coarse[:, None] == coarse) & others & ~best
    total = z.new_zeros(())
    for i in range(len(z)):
        for s, positive, allowed in (
            (cosines[i] / temperature, best[i], others[i]),
            (cosines[i] / coarse_temperature, good[i], others[i] & ~best[i]),
        ):
            if positive.any():
                total = total + s[allowed].logsumexp(0) - s[positive].logsumexp(0)
    return total / len(z)


def sogclr(
    query: Tensor, key: Tensor, averages: Tensor, rate: float = 0.9, temperature: Number = 0.1
) -> tuple[Tensor, Tensor]:
    s = unit(query) @ unit(key).T / temperature
    weights = (s - s.diagonal()[:, None]).exp() * ~eye(len(s))
    g = weights.sum(1) / (len(s) - 1)
    averages = ((1 - rate) * averages + rate * g).detach()
    return (temperature * g / averages).mean(), averages


def isogclr(query: Tensor, key: Tensor, temperatures: Tensor, rho: float = 0.3) -> Tensor:
    cosines = unit(query) @ unit(key).T
    g = ((cosines - cosines.diagonal()[:, None]) / temperatures[:, None]).exp() * ~eye(len(query))
    return (temperatures * ((g.sum(1) / (len(query) - 1)).log() + rho)).mean()


def relic(x: Tensor, y: Tensor, alpha: float = 0.5, temperature: Number = 0.1) -> Tensor:
    s = unit(x) @ unit(y).T / temperature
    p, q = s.log_softmax(1), s.T.log_softmax(1)
    return -p.diagonal().mean() + alpha * kl_div(q, p, reduction="none", log_target=True).sum(1).mean()


def mochi(query: Tensor, key: Tensor, queue: Tensor, k: int = 8, temperature: Number = 0.2) -> Tensor:
    q, w = unit(query), unit(queue)
    hard, share = w[(q @ w.T).topk(k).indices], torch.rand(len(q), k, 1)
    mixed = share * hard + (1 - share) * hard[:, [k - 1, *range(k - 1)]]
    blocks = [(q * unit(key)).sum(1, keepdim=True), q @ w.T, (q[:, None] * unit(mixed)).sum(2)]
    return cross_entropy(torch.cat(blocks, 1) / temperature, torch.zeros(len(q), dtype=torch.int64))


def ring_loss(
    query: Tensor, key: Tensor, queue: Tensor, inner: int = 2, outer: int = 20, temperature: Number = 0.1
) -> Tensor:
    q = unit(query)
    ordered = (q @ unit(queue).T).sort(1, descending=True).values
    s = torch.cat([(q * unit(key)).sum(1, keepdim=True), ordered[:, inner:outer]], 1) / temperature
    return cross_entropy(s, torch.zeros(len(q), dtype=torch.int64))


def t_simcne(x: Tensor, y: Tensor) -> Tensor:
    z, n = torch.cat([x, y]), len(x)
    s = 1 / (1 + squared_distances(z, z))
    positive = torch.cat([s.diagonal(n), s.diagonal(-n)])
    return -(positive / (s * ~eye(2 * n)).sum(1)).log().mean()


def nwj(query: Tensor, key: Tensor, temperature: Number = 1.0) -> Tensor:
    s = unit(query) @ unit(key).T / temperature
    return (s - 1).exp()[~eye(len(s))].mean() - s.diagonal().mean()


def jsd(query: Tensor, key: Tensor, temperature: Number = 1.0) -> Tensor:
    s = unit(query) @ unit(key).T / temperature
    return softplus(-s.diagonal(), threshold=700).mean() + softplus(s[~eye(len(s))], threshold=700).mean()


def _with_ids(n: int, d: int) -> list[Any]:
    return [*pairs(n, d), many_labels(n), many_labels(n)]


def _two_levels(n: int, d: int) -> list[Any]:
    fine = many_labels(n) // 3
    return [points(n, d), fine // 2, fine]


INPUTS: dict[str, Inputs] = {
    "info_nce_ids": _with_ids,
    "false_negative_elimination": pairs,
    "am_info_nce": pairs,
    "ranking_info_nce": _two_levels,
    "sogclr": lambda n, d: [*pairs(n, d), numbers(n, 0.0)],
    "isogclr": lambda n, d: [*pairs(n, d), numbers(n, 0.05)],
    "relic": pairs,
    "mochi": with_queue,
    "ring_loss": with_queue,
    "t_simcne": pairs,
    "nwj": pairs,
    "jsd": pairs,
}
