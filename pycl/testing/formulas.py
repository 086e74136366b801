# SPDX-License-Identifier: Apache-2.0
"""The formula of every loss, straight from its paper, with the whole matrix in plain torch.

A formula has the name and the options of its function in :mod:`pycl.functional`, shares no code with it and returns the
terms of ``reduction="none"``. It runs in the dtype of its inputs: in float64 it is the truth, in a narrower one it
shows what rounding does to plain torch. An empty negative set counts as 0.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

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


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: Number,
    symmetric: bool = False,
    in_batch: bool = False,
    label_smoothing: float = 0.0,
) -> Tensor:
    q, k = unit(query), unit(key)
    smoothing: Any = {"label_smoothing": label_smoothing, "reduction": "none"}
    if negatives is not None:
        beside = _with_negatives(q, negatives) / temperature
        if in_batch:
            s = torch.cat([q @ k.T / temperature, beside], 1)
            return cross_entropy(s, diagonal(s), **smoothing)
        s = torch.cat([(q * k).sum(1, keepdim=True) / temperature, beside], 1)  # the positive is the first class
        return cross_entropy(s, torch.zeros_like(diagonal(s)), **smoothing)
    s = q @ k.T / temperature
    terms = cross_entropy(s, diagonal(s), **smoothing)
    return (terms + cross_entropy(s.T, diagonal(s), **smoothing)) / 2 if symmetric else terms


def _with_negatives(q: Tensor, negatives: Tensor) -> Tensor:
    """Cosines with negatives [M, d] of all queries or [N, M, d] of each one's own."""
    w = unit(negatives)
    return q @ w.T if w.dim() == 2 else (q[:, None] * w).sum(2)


def guided_info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: Number,
    margin: float | None = None,
    guide_query: Tensor | None = None,
    guide_key: Tensor | None = None,
    guide_negatives: Tensor | None = None,
    query_negatives: bool = False,
    key_negatives: bool = False,
) -> Tensor:
    def cosines(query: Tensor, key: Tensor, negatives: Tensor | None) -> Tensor:
        q, k = unit(query), unit(key)
        blocks = [q @ k.T]
        if negatives is not None:
            blocks.append(_with_negatives(q, negatives))
        blocks += [x @ x.T for x, wanted in ((q, query_negatives), (k, key_negatives)) if wanted]
        return torch.cat(blocks, 1)

    s = cosines(query, key, negatives)
    seen = s if guide_query is None or guide_key is None else cosines(guide_query, guide_key, guide_negatives)
    n = len(s)
    allowed = torch.ones_like(s, dtype=torch.bool) if margin is None else seen <= seen.diagonal()[:, None] + margin
    allowed[:, :n] |= ~others(n, s)
    for block in range(query_negatives + key_negatives):  # the last ones, each without its diagonal
        end = s.shape[1] - block * n
        allowed[:, end - n : end] &= others(n, s)
    return cross_entropy((s / temperature).masked_fill(~allowed, -torch.inf), diagonal(s), reduction="none")


def soft_info_nce(
    student_query: Tensor,
    student_key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    *,
    temperature: Number,
    teacher_temperature: Number = 0.07,
    symmetric: bool = False,
) -> Tensor:
    s = unit(student_query) @ unit(student_key).T / temperature
    t = (unit(teacher_query) @ unit(teacher_key).T / teacher_temperature).detach()
    terms = cross_entropy(s, t.softmax(1), reduction="none")
    return (terms + cross_entropy(s.T, t.T.softmax(1), reduction="none")) / 2 if symmetric else terms


def clip(
    image: Tensor, text: Tensor, logit_scale: Number, logit_bias: Number | None = None, label_smoothing: float = 0.0
) -> Tensor:
    s = logit_scale * image @ text.T
    if logit_bias is not None:
        s = s + logit_bias
    smoothing: Any = {"label_smoothing": label_smoothing, "reduction": "none"}
    return (cross_entropy(s, diagonal(s), **smoothing) + cross_entropy(s.T, diagonal(s), **smoothing)) / 2


def siglip(
    image: Tensor,
    text: Tensor,
    logit_scale: Number,
    logit_bias: Number,
    ids: tuple[Tensor, Tensor] | None = None,
    per_anchor: bool = False,
) -> Tensor:
    s = logit_scale * image @ text.T + logit_bias
    positive = ~others(len(s), s)
    if ids is not None:
        positive |= ids[0][:, None] == ids[1]
    terms = -logsigmoid(torch.where(positive, s, -s))
    number = positive.sum(1, keepdim=True) if per_anchor else 1
    return torch.where(positive, terms / number, terms).sum(1)


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


def alignment(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y) ** 2).sum(1)


def uniformity(x: Tensor, t: Number) -> Tensor:
    if len(x) == 1:
        return 0 * t * x.sum()
    distance = ((x[:, None] - x) ** 2).sum(-1)
    return (-t * distance[others(len(x), x)]).logsumexp(0) - math.log(len(x) * (len(x) - 1))
