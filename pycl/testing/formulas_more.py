# SPDX-License-Identifier: Apache-2.0
"""More formulas like those of :mod:`pycl.testing.formulas`: losses with weights, labels and bags, and of features."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

Number: TypeAlias = float | Tensor


def _unit(x: Tensor) -> Tensor:
    return normalize(x, dim=-1)


def _lse(logits: Tensor, allowed: Tensor) -> Tensor:
    """log sum exp over the allowed entries of each row; of none -inf, with a gradient of 0."""
    empty = ~allowed.any(1)
    inside = logits.masked_fill(~allowed, -torch.inf)[~empty].logsumexp(1)
    return torch.full_like(logits[:, 0], -torch.inf).masked_scatter(~empty, inside)


def hard_negative_nce(views: Tensor, temperature: Number, beta: float = 1.0, tau_plus: float = 0.0) -> Tensor:
    _, n, _ = views.shape
    u = _unit(views.flatten(0, 1))
    s = u @ u.T / temperature
    if n == 1:
        return 0 * s[:, :1].T.reshape(2, 1)
    negative = (torch.arange(2 * n)[:, None] - torch.arange(2 * n)) % n != 0
    count = 2 * n - 2
    weights = count * (beta * s).masked_fill(~negative, -torch.inf).softmax(1)
    p = torch.cat([s.diagonal(n), s.diagonal(-n)])
    mean = torch.where(negative, weights * s.exp(), 0).sum(1) / count
    corrected = (mean - tau_plus * p.exp()) / (1 - tau_plus)
    least = torch.exp(-1 / torch.as_tensor(temperature, dtype=s.dtype))
    ng = count * torch.where(corrected >= least, corrected, least)
    return (torch.log(p.exp() + ng) - p).view(2, n)


def robust_info_nce(query: Tensor, key: Tensor, temperature: Number, q: float = 0.5, lam: float = 0.01) -> Tensor:
    s = _unit(query) @ _unit(key).T / temperature
    terms: Tensor = ((lam * s.exp().sum(1)) ** q - (q * s.diagonal()).exp()) / q
    return terms


def mil_nce(video: Tensor, text: Tensor, bag_size: int) -> Tensor:
    x = (video @ text.T).view(len(video), len(video), bag_size)  # clip, bag, sentence
    own = torch.stack([x[i, i] for i in range(len(x))])
    everything = torch.cat([x.flatten(1), x.transpose(0, 1).flatten(1)], 1)
    return everything.logsumexp(1) - own.logsumexp(1)


def nearest_neighbour_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: Number) -> Tensor:
    q, k, candidates = _unit(query), _unit(key), _unit(queue)
    neighbours = candidates[(q @ candidates.T).argmax(1)].detach()
    s = neighbours @ k.T / temperature
    return s.logsumexp(1) - s.diagonal()


def _label_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


def multi_similarity(z: Tensor, labels: Tensor, alpha: Number = 2.0, beta: Number = 50.0, base: Number = 0.5) -> Tensor:
    s = _unit(z) @ _unit(z).T
    positive, negative = _label_pairs(labels)
    one = torch.zeros_like(s[:, :1])
    of_positives = torch.cat([(-alpha * (s - base)).masked_fill(~positive, -torch.inf), one], 1).logsumexp(1)
    of_negatives = torch.cat([(beta * (s - base)).masked_fill(~negative, -torch.inf), one], 1).logsumexp(1)
    return of_positives / alpha + of_negatives / beta


def circle(z: Tensor, labels: Tensor, margin: float = 0.4, gamma: float = 80.0) -> Tensor:
    s = _unit(z) @ _unit(z).T
    positive, negative = _label_pairs(labels)
    of_positives = -gamma * (1 + margin - s).relu().detach() * (s - (1 - margin))
    of_negatives = gamma * (s + margin).relu().detach() * (s - margin)
    exponent = _lse(of_positives, positive) + _lse(of_negatives, negative)
    return softplus(exponent, threshold=700)


def spectral(x: Tensor, y: Tensor) -> Tensor:
    s, n = x @ y.T, len(x)
    others: Tensor = s[~torch.eye(n, dtype=torch.bool)].square().sum() / max(n * (n - 1), 1)
    return others - 2 * s.diagonal().mean()


def vicreg(x: Tensor, y: Tensor) -> Tensor:
    n, d = x.shape
    value = 25 * ((x - y) ** 2).mean()
    for z in (x, y):
        centred = z - z.mean(0)
        covariance = centred.T @ centred / max(n - 1, 1)
        spread = (covariance.diagonal() + 1e-4).sqrt()
        value = value + 25 * (1 - spread).relu().mean() / 2
        value = value + covariance[~torch.eye(d, dtype=torch.bool)].square().sum() / d
    return value


def barlow_twins(x: Tensor, y: Tensor) -> Tensor:
    n, d = x.shape
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (x, y))
    c = a.T @ b / n
    value: Tensor = (c.diagonal() - 1).square().sum() + 5e-3 * c[~torch.eye(d, dtype=torch.bool)].square().sum()
    return value


def koleo(x: Tensor) -> Tensor:
    if len(x) == 1:
        return 0 * x.sum(1)
    u = _unit(x)
    nearest = (u @ u.T).fill_diagonal_(-2).argmax(1)
    terms: Tensor = -((u - u[nearest] + 1e-8).norm(dim=1) + 1e-8).log()
    return terms
