# SPDX-License-Identifier: Apache-2.0
"""MVCNet: rows and formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, log_sum, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def nt_xent(u: Tensor, w: Tensor, temperature: Number) -> Tensor:
    z, n = unit(torch.cat([w, u])), len(u)
    s = z @ z.T / temperature
    return (log_sum(s, others(2 * n, z)) - torch.cat([s.diagonal(n), s.diagonal(-n)])).mean()


def mvcnet(cnn: Tensor, transformer: Tensor, temperature: Number) -> tuple[Tensor, Tensor]:
    raw = torch.cat([cnn[0], transformer[0]])
    cross_view = torch.zeros((), dtype=cnn.dtype)
    for c, t in zip(cnn[1:], transformer[1:], strict=True):
        cross_view = cross_view + nt_xent(raw, torch.cat([c, t]), temperature) / (len(cnn) - 1)
    return cross_view, nt_xent(cnn.flatten(0, 1), transformer.flatten(0, 1), temperature)


def signals(n: int, d: int) -> Arguments:
    raw = torch.randn(1, n, d, dtype=torch.float64)
    cnn = torch.cat([raw, raw + 0.5 * torch.randn(2, n, d, dtype=torch.float64)])
    return {"cnn": cnn, "transformer": cnn + torch.randn_like(cnn)}


ROWS = (
    Objective(
        "mvcnet",
        objectives.mvcnet,
        mvcnet,
        signals,
        paper=Paper(
            "MVCNet",
            "https://arxiv.org/abs/2502.17482",
            "the cross-view and the cross-model loss",
            "`pair_cross_entropy`",
            official=lambda n, d: 4 * (8 * n) ** 2 * d,
            differs="the code's cosines take a tensor of all pairs times d",
        ),
    ),
)
