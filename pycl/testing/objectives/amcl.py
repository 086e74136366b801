# SPDX-License-Identifier: Apache-2.0
"""AMCL: rows and formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pycl import objectives
from pycl.objectives import PairTemperature
from pycl.testing.formulas import Number, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def mlp(temperature: PairTemperature, a: Tensor, b: Tensor) -> Tensor:
    w1, b1, w2, b2 = (p.to(a.dtype) for p in temperature.parameters())
    hidden = (torch.cat([a, b], 1) @ w1.T + b1).relu()
    return temperature.low + (temperature.high - temperature.low) * (hidden @ w2[0] + b2).sigmoid()


def amcl(heads: Tensor, temperature: Any, beta: Number, top: int = 1) -> Tensor:
    u = unit(heads)
    n_heads, _, n, d = u.shape
    of_head = temperature if isinstance(temperature, nn.ModuleList) else [temperature] * n_heads
    value = u.new_zeros(())
    for (a, b), network in zip(u, of_head, strict=True):
        cosine = a @ b.T
        positive = mlp(network, a, b)
        value = value + (beta * (d / 2 * positive.log() + 1 / positive) - cosine.diagonal() / positive).mean()
        if n > 1:
            v, index = cosine.masked_fill(~others(n, a), -torch.inf).topk(min(top, n - 1))
            for c, j in zip(v.T, index.T, strict=True):
                t = mlp(network, a, b[j])
                value = value + (c / t - beta * (d / 2 * t.log() + 1 / t)).mean() / len(index.T)
    return value


def one_network(n: int, d: int) -> Arguments:
    return {"heads": heads(2, n, d), "temperature": network(d)}


def network_for_each(n: int, d: int) -> Arguments:
    return {"heads": heads(3, n, d), "temperature": nn.ModuleList([network(d) for _ in range(3)])}


def network(d: int) -> PairTemperature:
    return PairTemperature(d, 16, low=0.1).double()


def heads(n_heads: int, n: int, d: int) -> Tensor:
    z = torch.randn(n_heads, 1, n, d, dtype=torch.float64)
    return z + 0.5 * torch.randn(n_heads, 2, n, d, dtype=torch.float64)


ROWS = (
    Objective(
        "amcl",
        objectives.amcl,
        amcl,
        one_network,
        scalars={"beta": 0.1},
        paper=Paper(
            "AMCL",
            "https://arxiv.org/abs/2310.05615",
            "equation 2.1",
            "`pair_extremes`; `pair_top` for more than four negatives",
            differs="the released code does not run and has no negatives: the formula of the paper is followed",
        ),
    ),
    Objective("amcl_top", objectives.amcl, amcl, network_for_each, scalars={"beta": 0.3}, options={"top": 3}),
)
