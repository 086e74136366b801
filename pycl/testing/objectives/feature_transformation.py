# SPDX-License-Identifier: Apache-2.0
"""Feature Transformation: rows and formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def feature_transform(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: Number,
    positive: float,
    negative: float,
    permutation: Tensor,
) -> Tensor:
    q, k, others = unit(query), unit(key.detach()), unit(queue.detach())
    apart = positive * q + (1 - positive) * k, positive * k + (1 - positive) * q
    mixed = negative * others + (1 - negative) * others[permutation]
    s = torch.cat([(apart[0] * apart[1]).sum(1, keepdim=True), apart[0] @ mixed.T], 1) / temperature
    return -s.log_softmax(1)[:, 0].mean()


def score_statistics(
    query: Tensor, candidates: Tensor, temperature: float | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    s = unit(query.detach()) @ unit(candidates.detach()).T
    return s.mean(1), s.var(1), None if temperature is None else (s / temperature).exp().mean(1)


def with_queue(n: int, d: int) -> Arguments:
    key, queue = (torch.randn(k, d, dtype=torch.float64) for k in (n, n + 3))
    query = key + 0.5 * torch.randn_like(key)
    return {"query": query, "key": key, "queue": queue, "permutation": torch.randperm(len(queue))}


def candidates(n: int, d: int) -> Arguments:
    return {
        "query": torch.randn(n, d, dtype=torch.float64),
        "candidates": torch.randn(n + 3, d, dtype=torch.float64) + 0.5,
    }


LINK = "https://arxiv.org/abs/2108.02982"
ROWS = (
    Objective(
        "feature_transform",
        objectives.feature_transform,
        feature_transform,
        with_queue,
        options={"positive": 1.4, "negative": 0.3},
        constants=frozenset({"key", "queue"}),
        steepness=20.0,  # |q'| |k'| is at most (2 positive - 1)^2
        paper=Paper(
            "Feature Transformation",
            LINK,
            "positives extrapolated, negatives interpolated, one factor for a batch",
            "`info_nce` with a queue",
            official=lambda n, d: 4 * n * n,
            differs="the code draws a factor for each feature by default and stores mixed keys unless told otherwise",
        ),
    ),
    Objective(
        "score_statistics",
        objectives.score_statistics,
        score_statistics,
        candidates,
        scalars={},
        constants=frozenset({"query", "candidates"}),
        paper=Paper(
            "Feature Transformation, its statistics of scores",
            LINK,
            "mean, variance and mean exponential of each query's scores",
            "`pair_stats` for the exponential",
            official=lambda n, d: 4 * n * n,
            differs="the code rounds mean and variance to float16",
        ),
    ),
    Objective(
        "score_statistics/temperature",
        objectives.score_statistics,
        score_statistics,
        candidates,
        scalars={},
        options={"temperature": 0.2},
        constants=frozenset({"query", "candidates"}),
    ),
)
