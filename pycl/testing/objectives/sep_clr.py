# SPDX-License-Identifier: Apache-2.0
"""SepCLR: rows and formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, log_sum, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def distances(x: Tensor) -> Tensor:
    return (x[:, None] - x).square().sum(-1)


def joint_entropy(common: Tensor, salient: Tensor, temperature: Number) -> Tensor:
    kernel = -(distances(unit(common)) + distances(salient)) / (2 * temperature)
    return kernel.logsumexp(1).mean() - math.log(len(common))


def uniformity(x: Tensor, temperature: Number) -> Tensor:
    n = len(x)
    if n == 1:
        return 0 * x.sum()
    above = others(n, x).triu().flatten()
    return log_sum(-distances(x).flatten() / (2 * temperature), above) - math.log(n * (n - 1) / 2)


def sep_clr(
    common: Tensor,
    salient: Tensor,
    is_target: Tensor,
    temperature: Number,
    salient_weight: Number = 1000.0,
    null_weight: Number = 1000.0,
    entropy_weight: Number = 10.0,
) -> Tensor:
    c, t = unit(common), salient * is_target[:, None]
    value = (c[0] - c[1]).square().sum(1).mean() / (2 * temperature)
    if is_target.any():
        near = (salient[0] - salient[1])[is_target].square().sum(1).mean()
        value = value + salient_weight * near / (2 * temperature)
    if not is_target.all():
        value = value + null_weight * salient[:, ~is_target].square().sum(2).mean() / (2 * temperature)
    for v in range(2):
        value = value + uniformity(c[v], temperature) + salient_weight * uniformity(t[v], temperature)
        value = value + entropy_weight * joint_entropy(common[v], t[v], temperature) / 2
    return value


def common_and_salient(n: int, d: int) -> Arguments:
    return {
        "common": torch.randn(n, d, dtype=torch.float64),
        "salient": torch.randn(n, max(1, d // 2), dtype=torch.float64),
    }


def two_views(n: int, d: int) -> Arguments:
    views = common_and_salient(n, d)
    arguments = {name: x + 0.5 * torch.randn(2, *x.shape, dtype=torch.float64) for name, x in views.items()}
    return {**arguments, "is_target": torch.arange(n) % 3 > 0}


ROWS = (
    Objective(
        "joint_entropy",
        objectives.joint_entropy,
        joint_entropy,
        common_and_salient,
        scalars={"temperature": 0.5},
        batch={"common": 0, "salient": 0},
        cosine=False,
        paper=Paper(
            "SepCLR, its joint entropy",
            "https://arxiv.org/abs/2402.11928",
            "k-JEM",
            "`pair_stats`",
            official=lambda n, d: 4 * n * n,
            differs="the distance of a point to itself is exactly 0",
        ),
    ),
    Objective(
        "sep_clr",
        objectives.sep_clr,
        sep_clr,
        two_views,
        scalars={"temperature": 0.5},
        batch={"common": 1, "salient": 1, "is_target": 0},
        cosine=False,
        paper=Paper(
            "SepCLR",
            "https://arxiv.org/abs/2402.11928",
            "the weighted sum of all terms",
            "`uniformity`, `pair_stats`",
            official=lambda n, d: 4 * n * n,
            differs="no target or no background rows: the term is 0, not NaN",
        ),
    ),
    Objective(
        "sep_clr_weights",
        objectives.sep_clr,
        sep_clr,
        two_views,
        scalars={"temperature": 0.7, "salient_weight": 2.0, "null_weight": 3.0, "entropy_weight": 1.5},
        batch={"common": 1, "salient": 1, "is_target": 0},
        cosine=False,
    ),
)
