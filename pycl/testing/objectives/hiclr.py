# SPDX-License-Identifier: Apache-2.0
"""HiCLR: rows and formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def logits(x: Tensor, key: Tensor, queue: Tensor, temperature: Number) -> Tensor:
    u, k, others = unit(x), unit(key.detach()), unit(queue.detach())
    return torch.cat([(u * k).sum(1, keepdim=True), u @ others.T], 1) / temperature


def directional_consistency(
    student: Tensor, teacher: Tensor, key: Tensor, queue: Tensor, temperature: Number
) -> Tensor:
    target = logits(teacher, key, queue, temperature).softmax(1).detach()
    return -(target * logits(student, key, queue, temperature).log_softmax(1)).sum(1).mean()


def hiclr(
    query: Tensor,
    normal: Tensor,
    strong: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: Number,
    mine: bool = False,
) -> Tensor:
    of_views = [logits(x, key, queue, temperature) for x in (query, normal, strong)]
    positive = torch.zeros_like(of_views[0])
    positive[:, 0] = 1
    if mine:
        for z in of_views:
            positive.scatter_(1, 1 + z[:, 1:].argmax(1, keepdim=True), 1)
    contrast = -(of_views[0].log_softmax(1) * positive).sum(1) / positive.sum(1)
    steps = [
        directional_consistency(student, teacher, key, queue, temperature)
        for student, teacher in ((normal, query), (strong, normal))
    ]
    return contrast.mean() + (steps[0] + steps[1]) / 2


def pair_with_queue(n: int, d: int) -> Arguments:
    key, queue = (torch.randn(k, d, dtype=torch.float64) for k in (n, n + 3))
    student, teacher = (key + size * torch.randn_like(key) for size in (1.0, 0.5))
    return {"student": student, "teacher": teacher, "key": key, "queue": queue}


def three_views(n: int, d: int) -> Arguments:
    key, queue = (torch.randn(k, d, dtype=torch.float64) for k in (n, n + 3))
    query, normal, strong = (key + size * torch.randn_like(key) for size in (0.3, 0.6, 1.2))
    return {"query": query, "normal": normal, "strong": strong, "key": key, "queue": queue}


LINK = "https://arxiv.org/abs/2211.13466"
ROWS = (
    Objective(
        "directional_consistency",
        objectives.directional_consistency,
        directional_consistency,
        pair_with_queue,
        constants=frozenset({"teacher", "key", "queue"}),
        paper=Paper(
            "HiCLR, one step of directional consistency",
            LINK,
            "cross entropy of the strong with the weak augmentation's softmax",
            "`pair_average`",
            official=lambda n, d: 4 * n * n,
            differs="the code takes the logarithm of a softmax, infinite in float16",
        ),
    ),
    Objective(
        "hiclr",
        objectives.hiclr,
        hiclr,
        three_views,
        constants=frozenset({"key", "queue"}),
        paper=Paper(
            "HiCLR",
            LINK,
            "contrast and two steps of directional consistency",
            "`pair_average`, `pair_extremes`",
            official=lambda n, d: 3 * 4 * n * n,
        ),
    ),
    Objective(
        "hiclr/mine",
        objectives.hiclr,
        hiclr,
        three_views,
        options={"mine": True},
        constants=frozenset({"key", "queue"}),
    ),
)
