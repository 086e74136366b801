# SPDX-License-Identifier: Apache-2.0
"""Losses without a softmax over pairs: spectral, decorrelation, spread."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.testing.formulas.shared import unit


def spectral(x: Tensor, y: Tensor) -> Tensor:
    s, n = x @ y.T, len(x)
    others: Tensor = s[~torch.eye(n, dtype=torch.bool)].square().sum() / max(n * (n - 1), 1)
    return others - 2 * s.diagonal().mean()


def vicreg(x: Tensor, y: Tensor) -> Tensor:
    n, d = x.shape
    value = 25 * ((x - y) ** 2).mean()
    for z in (x, y):
        centred = z - z.mean(0)
        covariance = centred.T @ centred / max(n - 1, 1)
        spread = (covariance.diagonal() + 1e-4).sqrt()
        value = value + 25 * (1 - spread).relu().mean() / 2
        value = value + covariance[~torch.eye(d, dtype=torch.bool)].square().sum() / d
    return value


def barlow_twins(x: Tensor, y: Tensor) -> Tensor:
    n, d = x.shape
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (x, y))
    c = a.T @ b / n
    value: Tensor = (c.diagonal() - 1).square().sum() + 5e-3 * c[~torch.eye(d, dtype=torch.bool)].square().sum()
    return value


def koleo(x: Tensor) -> Tensor:
    if len(x) == 1:
        return 0 * x.sum(1)
    u = unit(x)
    nearest = (u @ u.T).fill_diagonal_(-2).argmax(1)
    terms: Tensor = -((u - u[nearest] + 1e-8).norm(dim=1) + 1e-8).log()
    return terms
