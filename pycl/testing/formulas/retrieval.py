# SPDX-License-Identifier: Apache-2.0
"""Losses of queries and keys, images and texts: pairs that belong together row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from pycl.testing.formulas.shared import Number, diagonal, others, unit


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


def robust_info_nce(query: Tensor, key: Tensor, temperature: Number, q: float = 0.5, lam: float = 0.01) -> Tensor:
    s = unit(query) @ unit(key).T / temperature
    terms: Tensor = ((lam * s.exp().sum(1)) ** q - (q * s.diagonal()).exp()) / q
    return terms


def mil_nce(video: Tensor, text: Tensor, bag_size: int) -> Tensor:
    x = (video @ text.T).view(len(video), len(video), bag_size)  # clip, bag, sentence
    own = torch.stack([x[i, i] for i in range(len(x))])
    everything = torch.cat([x.flatten(1), x.transpose(0, 1).flatten(1)], 1)
    return everything.logsumexp(1) - own.logsumexp(1)


def nearest_neighbour_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: Number) -> Tensor:
    q, k, candidates = unit(query), unit(key), unit(queue)
    neighbours = candidates[(q @ candidates.T).argmax(1)].detach()
    s = neighbours @ k.T / temperature
    return s.logsumexp(1) - s.diagonal()
