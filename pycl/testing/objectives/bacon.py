# SPDX-License-Identifier: Apache-2.0
"""BaCon: rows and formula."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, log_sum, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def soft_sup_con(views: Tensor, probabilities: Tensor, temperature: Number) -> Tensor:
    n_views, n, _ = views.shape
    z, p = unit(views.flatten(0, 1)), probabilities.detach().repeat(n_views, 1)
    s, free, instance = z @ z.T / temperature, others(len(z), z), torch.arange(n, device=z.device).repeat(n_views)
    weights = torch.where(instance[:, None] == instance, torch.ones_like(s), p @ p.T) * free
    total = weights.sum(1)
    mean = (weights * s).sum(1) / total.masked_fill(total == 0, 1)
    return (log_sum(s, free) - mean).masked_fill(total == 0, 0).mean()


def several_views(n_views: int, n: int, d: int) -> Arguments:
    probabilities = torch.randn(n, 5, dtype=torch.float64).mul(2).softmax(1)
    return {"views": torch.randn(n_views, n, d, dtype=torch.float64), "probabilities": probabilities}


def row(name: str, n_views: int, paper: Paper | None = None) -> Objective:
    return Objective(
        name,
        objectives.soft_sup_con,
        soft_sup_con,
        partial(several_views, n_views),
        constants=frozenset({"probabilities"}),
        batch={"views": 1, "probabilities": 0},
        paper=paper,
    )


ROWS = (
    row(
        "soft_sup_con",
        2,
        Paper(
            "BaCon",
            "https://arxiv.org/abs/2310.01376",
            "the soft contrastive term",
            "`pair_cross_entropy` without positives, sums of classes",
            official=lambda n, d: 4 * (2 * n) ** 2,
            differs="the code takes normalised features; they are normalised here",
        ),
    ),
    row("soft_sup_con_three_views", 3),
    row("soft_sup_con_one_view", 1),
)
