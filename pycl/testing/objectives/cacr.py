# SPDX-License-Identifier: Apache-2.0
"""CACR: rows and formulas."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pycl import objectives
from pycl.testing.formulas import Number, diagonal, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def cacr(
    views: Tensor,
    tau_pos: Number = 1.0,
    tau_neg: Number = 0.9,
    alpha: Number = 1.0,
    beta: Number = 1.0,
    detach_weights: bool = False,
) -> Tensor:
    u = unit(views)
    n_views, n, _ = u.shape
    near = (u[:, None] - u).square().sum(-1)  # [x, y, i]
    others_of_x = others(n_views, u)[:, :, None]
    weights = (tau_pos * near).masked_fill(~others_of_x, -torch.inf).softmax(1)
    weights = weights.detach() if detach_weights else weights
    value = (weights * alpha * near).sum(1).mean()
    if n == 1:
        return value
    for x, y in combinations(u, 2):
        far = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
        weights = (-tau_neg * far).masked_fill(~others(n, u), -torch.inf).softmax(1)
        weights = weights.detach() if detach_weights else weights
        value = value - (weights * beta * far).sum(1).mean() / (n_views * (n_views - 1) / 2)
    return value


def cacr_momentum(queries: Tensor, keys: Tensor, temperature: Number) -> Tensor:
    u, k = unit(queries), unit(keys.detach())
    weights = ((u - k).square().sum(-1) / temperature).softmax(0).detach()
    terms = [cross_entropy(q @ k.T / temperature, diagonal(k), reduction="none") for q in u]
    return (weights * torch.stack(terms)).mean(1).sum() * 2 * temperature


def three_views(n: int, d: int) -> Arguments:
    return {"views": torch.randn(n, d, dtype=torch.float64) + 0.5 * torch.randn(3, n, d, dtype=torch.float64)}


def queries_and_keys(n: int, d: int) -> Arguments:
    keys = torch.randn(n, d, dtype=torch.float64)
    return {"queries": keys + 0.5 * torch.randn(2, n, d, dtype=torch.float64), "keys": keys}


ROWS = (
    Objective(
        "cacr",
        objectives.cacr,
        cacr,
        three_views,
        scalars={"tau_pos": 1.5, "tau_neg": 0.9, "alpha": 0.7, "beta": 1.3},
        batch={"views": 1},
        paper=Paper(
            "CACR",
            "https://arxiv.org/abs/2105.03746",
            "the loss with the squared Euclidean cost",
            "means of logits under their own softmax; `pair_average` where tau_neg is learned",
            official=lambda n, d: 4 * n * n * d,
            differs="the code stores the differences of all pairs; with one instance the repulsion is 0",
        ),
    ),
    Objective(
        "cacr_detached",
        objectives.cacr,
        cacr,
        three_views,
        scalars={"alpha": 0.7, "beta": 1.3},
        options={"detach_weights": True},
        batch={"views": 1},
    ),
    Objective(
        "cacr_momentum",
        objectives.cacr_momentum,
        cacr_momentum,
        queries_and_keys,
        constants=frozenset({"keys"}),
        batch={"queries": 1, "keys": 0},
        paper=Paper(
            "CACR with momentum keys",
            "https://arxiv.org/abs/2105.03746",
            "the code's loss for ImageNet, default cost",
            "`pair_stats`",
            official=lambda n, d: 4 * n * n,
        ),
    ),
)
