# SPDX-License-Identifier: Apache-2.0
"""What the answers of the suite "modifiers" are, in float64 and in blocks of points, by autograd.

It shares no code with what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .losses import LOGIT_SCALE
from .modifiers import MARGIN

PAIRS = 2**18  # of one block, of which autograd keeps some vectors each

# What a modifier makes of the logits of rows i and columns j, with weights as factors.
Modify = Callable[..., Tensor]


def of_label_table(logits: Tensor, i: Tensor, j: Tensor, table: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return logits + table[a[i]].log().index_select(1, b[j])


def of_agreement(logits: Tensor, i: Tensor, j: Tensor, weights: Tensor, a: Tensor, b: Tensor) -> Tensor:
    agreeing = (a[:, i, None] == b[:, None, j]).sum(0)
    return logits + F.one_hot(agreeing, len(weights)).to(weights.dtype) @ weights.log()


def of_limit(logits: Tensor, i: Tensor, j: Tensor, rows: Tensor) -> Tensor:
    return torch.where((logits <= rows[i, None]) | (i[:, None] == j), logits, -torch.inf)


def of_guide(logits: Tensor, i: Tensor, j: Tensor, rows: Tensor, g: Tensor, h: Tensor) -> Tensor:
    return torch.where((g[i] @ h[j].T <= rows[i, None]) | (i[:, None] == j), logits, -torch.inf)


def of_pair_mlp(logits: Tensor, i: Tensor, j: Tensor, p: Tensor, q: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return logits + F.logsigmoid(torch.tanh(p[i, None] + q[j]) @ w2 + b2)


def of_score_mod(logits: Tensor, i: Tensor, j: Tensor, slope: Tensor) -> Tensor:
    return logits - slope * (i[:, None] - j).abs()


def of_col_scale(logits: Tensor, i: Tensor, j: Tensor, factor: Tensor) -> Tensor:
    return logits * factor[j]


def modified_clip(modify: Modify, x: Tensor, y: Tensor, *data: Tensor) -> Tensor:
    """In blocks of rows, and of columns, that autograd computes again."""
    everyone = torch.arange(len(x), device=x.device)

    def of_rows(i: Tensor) -> Tensor:
        logits = modify(LOGIT_SCALE * x[i] @ y.T, i, everyone, *data)
        return (logits.logsumexp(1) / 2 - logits.gather(1, i[:, None])[:, 0]).sum()

    def of_cols(j: Tensor) -> Tensor:
        return modify(LOGIT_SCALE * x @ y[j].T, everyone, j, *data).logsumexp(0).sum() / 2

    return taped(of_rows, x) + taped(of_cols, x)


def matryoshka(x: Tensor, y: Tensor) -> Tensor:
    def as_they_are(logits: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return logits

    def of_prefix(d: int) -> Tensor:
        return modified_clip(as_they_are, *(z[:, :d] / z[:, :d].norm(dim=1, keepdim=True) for z in (x, y)))

    return torch.stack([of_prefix(x.shape[1] // part) for part in (8, 4, 2, 1)]).sum()


def symmetric_table(x: Tensor, y: Tensor, table: Tensor, a: Tensor) -> Tensor:
    z = torch.cat([x, y])

    def of_rows(i: Tensor) -> Tensor:
        logits = of_label_table(LOGIT_SCALE * z[i] @ z.T, i, torch.arange(len(z), device=z.device), table, a, a)
        positives = logits.gather(1, ((i + len(x)) % len(z))[:, None])[:, 0]
        itself = F.one_hot(i, len(z)).bool()
        return (logits.masked_fill(itself, -torch.inf).logsumexp(1) - positives).sum()

    return taped(of_rows, z)


def ada_meow(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    def of_rows(i: Tensor) -> Tensor:
        weights = torch.sigmoid(torch.tanh((x[i, None] + y) @ w1.T + b1) @ w2 + b2)
        logits = LOGIT_SCALE * x[i] @ y.T
        return ((weights.log() + logits).logsumexp(1) - logits.gather(1, i[:, None])[:, 0]).sum()

    return taped(of_rows, x)


def average(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
    return taped(lambda i: (x[i] * ((LOGIT_SCALE * x[i] @ y.T).softmax(1) @ values)).sum(), x)


def extremes(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    found = []
    for i in torch.arange(len(x), device=x.device).split(1024):
        logits, same = x[i] @ y.T, ids[i, None] == ids
        negative, positive = torch.where(same, -torch.inf, logits), torch.where(same, logits, torch.inf)
        found.append(torch.stack([negative.max(1).values, positive.min(1).values]))
    return torch.cat(found, 1).flatten()


def mapped_sum(map: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    def of_rows(i: Tensor) -> Tensor:
        others = i[:, None] != torch.arange(len(y), device=y.device)
        return (map(x[i] @ y.T) * others).sum()

    return taped(of_rows, x)


def hinges(x: Tensor, y: Tensor) -> Tensor:
    own, everyone = (x * y).sum(1), torch.arange(len(x), device=x.device)

    def of_rows(i: Tensor) -> Tensor:
        violation = MARGIN + x[i] @ y.T - own[i, None]
        return (violation.clamp_min(0) * (i[:, None] != everyone)).sum()

    return taped(of_rows, x)


def taped(of_rows: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mean over points of a sum over blocks of points; the backward computes each block again."""
    height = max(1, PAIRS // len(x))
    blocks = torch.arange(len(x), device=x.device).split(height)
    return torch.stack([checkpoint(of_rows, i, use_reentrant=False) for i in blocks]).sum() / len(x)


IN_BLOCKS: dict[str, Callable[..., Tensor]] = {
    "LabelTable": partial(modified_clip, of_label_table),
    "LabelTable, NT-Xent": symmetric_table,
    "Agreement": partial(modified_clip, of_agreement),
    "Limit": partial(modified_clip, of_limit),
    "Limit, guide": partial(modified_clip, of_guide),
    "PairMLP": partial(modified_clip, of_pair_mlp),
    "col_scale": partial(modified_clip, of_col_scale),
    "score_mod": partial(modified_clip, of_score_mod),
    "matryoshka": matryoshka,
    "AdaMEOW": ada_meow,
    "pair_average": average,
    "pair_sum, square": partial(mapped_sum, torch.square),
    "pair_sum, relu": hinges,
    "pair_sum, exp": partial(mapped_sum, torch.exp),
    "pair_extremes": extremes,
}
