# SPDX-License-Identifier: Apache-2.0
"""FAC: rows and formulas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pycl import objectives
from pycl.testing.formulas import Number, diagonal, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def point_info_nce(a: Tensor, b: Tensor, segments: Tensor | None = None, *, temperature: Number) -> Tensor:
    s = unit(a) @ unit(b).T / temperature
    if segments is None:
        return cross_entropy(s, diagonal(s))
    positive = segments[:, None] == segments
    return -(s.log_softmax(1) * positive).sum(1).div(positive.sum(1)).mean()


def moco_cross_format(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, queue1: Tensor, queue2: Tensor, temperature: Number
) -> Tensor:
    terms = []
    for query, key, queue in ((q1, k1, queue1), (q2, k2, queue2), (q1, k2, queue2), (q2, k1, queue1)):
        q, k = unit(query), unit(key.detach())
        s = torch.cat([(q * k).sum(1, keepdim=True), q @ unit(queue.detach()).T], 1) / temperature
        terms.append(-s.log_softmax(1)[:, 0].mean())
    return torch.stack(terms).mean()


def points(n: int, d: int) -> Arguments:
    a = torch.randn(n, d, dtype=torch.float64)
    return {"a": a, "b": a + 0.5 * torch.randn_like(a)}


def segmented(n: int, d: int) -> Arguments:
    return {**points(n, d), "segments": torch.randint(0, 5, (n,))}


def formats(n: int, d: int) -> Arguments:
    k1 = torch.randn(n, d, dtype=torch.float64)
    k2 = torch.randn_like(k1)
    queue1, queue2 = (torch.randn(k, d, dtype=torch.float64) for k in (n + 3, n + 2))
    q1, q2 = (k + 0.5 * torch.randn_like(k1) for k in (k1, k2))
    return {"q1": q1, "k1": k1, "q2": q2, "k2": k2, "queue1": queue1, "queue2": queue2}


ROWS = (
    Objective(
        "point_info_nce",
        objectives.point_info_nce,
        point_info_nce,
        points,
        batch={"a": 0, "b": 0},
        paper=Paper(
            "FAC, InfoNCE over points and their segments",
            "https://arxiv.org/abs/2303.06388",
            "our reading: InfoNCE over matched points, points of a segment as positives",
            "`pair_stats`",
            differs="the released code does not have the paper's loss",
        ),
    ),
    Objective(
        "point_info_nce/segments",
        objectives.point_info_nce,
        point_info_nce,
        segmented,
        batch={"a": 0, "b": 0, "segments": 0},
    ),
    Objective(
        "moco_cross_format",
        objectives.moco_cross_format,
        moco_cross_format,
        formats,
        constants=frozenset({"k1", "k2", "queue1", "queue2"}),
        paper=Paper(
            "FAC, the loss of its released code",
            "https://arxiv.org/abs/2303.06388",
            "within and across two formats, after DepthContrast",
            "`info_nce` with a queue",
            official=lambda n, d: 4 * n * n,
            differs="the code weights each of four terms by 0.5: twice the mean; gradients may reach its keys",
        ),
    ),
)
