# SPDX-License-Identifier: Apache-2.0
"""Losses of two and more views."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from pycl.testing.formulas.shared import Number, log_sum, others, unit


def nt_xent(views: Tensor, temperature: Number) -> Tensor:
    n_views, n, _ = views.shape
    z = unit(views.flatten(0, 1))
    s = z @ z.T / temperature
    free, instance = others(len(z), z), torch.arange(n, device=z.device).repeat(n_views)
    positive = (instance[:, None] == instance) & free
    mean_positive = torch.where(positive, s, 0).sum(1) / positive.sum(1)
    return (log_sum(s, free) - mean_positive).view(n_views, n)


def pairwise_nt_xent(views: Tensor, temperature: Number) -> Tensor:
    terms = [torch.zeros_like(view[:, 0]) for view in views]
    for a, b in combinations(range(len(views)), 2):
        of_pair = nt_xent(torch.stack([views[a], views[b]]), temperature)
        terms[a], terms[b] = terms[a] + of_pair[0], terms[b] + of_pair[1]
    return torch.stack(terms) / (len(views) - 1)


def dcl(views: Tensor, temperature: Number) -> Tensor:
    return _decoupled(views, temperature, 1.0)


def dclw(views: Tensor, temperature: Number, sigma: float) -> Tensor:
    u, v = unit(views)
    return _decoupled(views, temperature, 2 - len(u) * ((u * v).sum(1) / sigma).softmax(0).detach())


def _decoupled(views: Tensor, temperature: Number, weight: Number) -> Tensor:
    u, v = unit(views)
    free = others(len(u), u).repeat(1, 2)
    energy = [log_sum(torch.cat([a @ a.T, a @ b.T], 1) / temperature, free) for a, b in ((u, v), (v, u))]
    terms: Tensor = torch.stack(energy) - weight * (u * v).sum(1) / temperature
    return terms


def dhel(views: Tensor, temperature: Number) -> Tensor:
    u, v = unit(views)
    free = others(len(u), u)
    energy: Tensor = log_sum(u @ u.T / temperature, free) + log_sum(v @ v.T / temperature, free)
    terms: Tensor = energy - (u * v).sum(1) / temperature
    return terms


def mv_dhel(views: Tensor, temperature: Number) -> Tensor:
    u = unit(views)
    free = others(u.shape[1], u)
    aligned = torch.stack([(a * b).sum(1) / temperature for a, b in combinations(u, 2)])
    return torch.stack([log_sum(w @ w.T / temperature, free) for w in u]).sum(0) - aligned.logsumexp(0)


def mv_info_nce(views: Tensor, temperature: Number, denominator: str = "all") -> Tensor:
    u = unit(views)
    free = others(u.shape[1], u)
    top, bottom, allowed = [], [], []
    for a, anchors in enumerate(u):
        for b, candidates in enumerate(u):
            if a != b:
                top.append((anchors * candidates).sum(1) / temperature)
            elif denominator == "cross_view":
                continue
            bottom.append(anchors @ candidates.T / temperature)
            allowed.append(torch.ones_like(free) if a != b else free)
    return log_sum(torch.cat(bottom, 1), torch.cat(allowed, 1)) - torch.stack(top).logsumexp(0)


def poly_view(views: Tensor, temperature: Number, mean: str = "geometric") -> Tensor:
    u = unit(views)
    n_views, n, _ = u.shape
    free = others(n, u)
    allowed = torch.cat([torch.ones_like(free[:, :1]), free.repeat(1, n_views)], 1)
    terms = []
    for a, anchors in enumerate(u):
        negatives = torch.cat([anchors @ w.T for w in u], 1) / temperature
        positives = [(anchors * u[b]).sum(1, keepdim=True) / temperature for b in range(n_views) if b != a]
        losses = torch.stack([log_sum(torch.cat([p, negatives], 1), allowed) - p.squeeze(1) for p in positives])
        arithmetic = math.log(n_views - 1) - losses.neg().logsumexp(0)
        terms.append(arithmetic if mean == "arithmetic" else losses.mean(0))
    return torch.stack(terms)


def hard_negative_nce(views: Tensor, temperature: Number, beta: float = 1.0, tau_plus: float = 0.0) -> Tensor:
    _, n, _ = views.shape
    u = unit(views.flatten(0, 1))
    s = u @ u.T / temperature
    if n == 1:
        return 0 * s[:, :1].T.reshape(2, 1)
    instance = torch.arange(n, device=u.device).repeat(2)
    negative = instance[:, None] != instance
    count = 2 * n - 2
    weights = count * (beta * s).masked_fill(~negative, -torch.inf).softmax(1)
    p = torch.cat([s.diagonal(n), s.diagonal(-n)])
    mean = torch.where(negative, weights * s.exp(), 0).sum(1) / count
    corrected = (mean - tau_plus * p.exp()) / (1 - tau_plus)
    least = torch.exp(-1 / torch.as_tensor(temperature, dtype=s.dtype))
    ng = count * torch.where(corrected >= least, corrected, least)
    return (torch.log(p.exp() + ng) - p).view(2, n)


def alignment(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y) ** 2).sum(1)


def uniformity(x: Tensor, t: Number) -> Tensor:
    if len(x) == 1:
        return 0 * t * x.sum()
    distance = ((x[:, None] - x) ** 2).sum(-1)
    return (-t * distance[others(len(x), x)]).logsumexp(0) - math.log(len(x) * (len(x) - 1))
