# SPDX-License-Identifier: Apache-2.0
"""POT: rows and formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, log_sum, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def grace(h1: Tensor, h2: Tensor, temperature: Number) -> Tensor:
    a, b = unit(h1), unit(h2)
    n = len(a)
    free = torch.cat([torch.ones(n, n, dtype=torch.bool, device=a.device), others(n, a)], 1)
    of_a, of_b = (log_sum(torch.cat([x @ y.T, x @ x.T], 1) / temperature, free) for x, y in ((a, b), (b, a)))
    return ((of_a + of_b) / 2 - (a * b).sum(1) / temperature).mean()


def two_views(n: int, d: int) -> Arguments:
    h1 = torch.randn(n, d, dtype=torch.float64)
    return {"h1": h1, "h2": h1 + 0.5 * torch.randn_like(h1)}


ROWS = (
    Objective(
        "grace",
        objectives.grace,
        grace,
        two_views,
        batch={"h1": 0, "h2": 0},
        paper=Paper(
            "GRACE, the host loss of POT",
            "https://arxiv.org/abs/2006.04131",
            "equation 1",
            "`nt_xent`",
            official=lambda n, d: 4 * 4 * n * n,
            differs="the code subtracts the self term from the sum; it is never added here",
        ),
    ),
)
