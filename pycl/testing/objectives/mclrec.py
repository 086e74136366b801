# SPDX-License-Identifier: Apache-2.0
"""MCLRec: rows and formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, log_sum, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def mclrec(h1: Tensor, h2: Tensor, v1: Tensor, v2: Tensor, regularizer: Number) -> Tensor:
    total = torch.zeros((), dtype=h1.dtype)
    for a, b in ((h1, v2), (h2, v1), (v1, v2)):
        z, n = torch.cat([a, b]), len(a)
        s, instance = z @ z.T, torch.arange(n, device=a.device).repeat(2)
        positive = torch.cat([s.diagonal(n), s.diagonal(-n)])
        total = total + (log_sum(s, others(2 * n, z)) - positive).mean()
        if n > 1:
            rest = s[instance[:, None] != instance].view(2 * n, 2 * n - 2)
            hardest = rest.gather(1, rest.argmax(1, keepdim=True)).squeeze(1)
            spread = (hardest + 2 * (positive - hardest).relu()).mean() - rest.mean()
            total = total + regularizer * spread
    return total


def sequences(n: int, d: int) -> Arguments:
    h1 = torch.randn(n, d, dtype=torch.float64) * 1.5 / d**0.5
    h2 = h1 + 0.5 * torch.randn_like(h1) / d**0.5
    v1, v2 = (unit(h + 0.5 * torch.randn_like(h1) / d**0.5) for h in (h1, h2))
    return {"h1": h1, "h2": h2, "v1": v1, "v2": v2}


ROWS = (
    Objective(
        "mclrec",
        objectives.mclrec,
        mclrec,
        sequences,
        scalars={"regularizer": 0.1},
        cosine=False,
        paper=Paper(
            "MCLRec",
            "https://arxiv.org/abs/2304.07763",
            "the meta contrastive loss and its regularisation",
            "`pair_cross_entropy`, `pair_extremes`",
            official=lambda n, d: 4 * (2 * n) ** 2,
            differs="where positive and hardest negative are equal, the code's minimum and maximum split gradients",
        ),
    ),
)
