# SPDX-License-Identifier: Apache-2.0
"""MEOW, AdaMEOW and ProtoNCE: rows and formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pycl import objectives
from pycl.objectives import PairWeight
from pycl.testing.formulas import Number, log_sum, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def meow(anchor: Tensor, key: Tensor, clusters: Tensor, temperature: Number) -> Tensor:
    s = unit(anchor) @ unit(key).T / temperature
    weights = (clusters[:, :, None] != clusters[:, None, :]).sum(0)
    return (log_sum(s + weights.clamp_min(1).to(s.dtype).log(), weights > 0) - s.diagonal()).mean()


def ada_meow(anchor: Tensor, key: Tensor, weight: PairWeight, temperature: Number) -> Tensor:
    u, k = unit(anchor), unit(key)
    s = u @ k.T / temperature
    w1, b1, w2, b2 = (parameter.to(s.dtype) for parameter in weight.parameters())
    hidden = torch.tanh((u[:, None] + k) @ w1.T + b1)
    return ((s + torch.nn.functional.logsigmoid(hidden @ w2 + b2)).logsumexp(1) - s.diagonal()).mean()


def proto_nce(
    anchor: Tensor, centroids: list[Tensor], assignments: list[Tensor], concentrations: list[Tensor]
) -> Tensor:
    u = unit(anchor)
    terms = [
        cross_entropy(u @ c.detach().T / phi.detach(), own) + math.log(len(u) / len(c))
        for c, own, phi in zip(centroids, assignments, concentrations, strict=True)
    ]
    return torch.stack(terms).mean()


def two_sides(n: int, d: int) -> Arguments:
    anchor = torch.randn(n, d, dtype=torch.float64)
    return {"anchor": anchor, "key": anchor + 0.5 * torch.randn_like(anchor)}


def clustered(n: int, d: int) -> Arguments:
    return {**two_sides(n, d), "clusters": torch.stack([torch.arange(n) % 3, torch.randint(5, (n,))])}


def weighted(n: int, d: int) -> Arguments:
    return {**two_sides(n, d), "weight": PairWeight(d)}


def centred(n: int, d: int) -> Arguments:
    sizes = (n // 40 + 4, n // 13 + 7)  # as many as the authors take
    return {
        "anchor": torch.randn(n, d, dtype=torch.float64),
        "centroids": [torch.nn.functional.normalize(torch.randn(k, d, dtype=torch.float64), dim=1) for k in sizes],
        "assignments": [torch.randint(k, (n,)) for k in sizes],
        "concentrations": [0.3 + torch.rand(k, dtype=torch.float64) for k in sizes],
    }


MEOW = "https://arxiv.org/abs/2212.13847"
ROWS = (
    Objective(
        "meow",
        objectives.meow,
        meow,
        clustered,
        batch={"anchor": 0, "key": 0, "clusters": 1},
        paper=Paper(
            "MEOW",
            MEOW,
            "the contrastive loss of the coarse view",
            "`pair_cross_entropy` with `Agreement`",
            official=lambda n, d: 4 * n * n,
            differs="a node clustered with everyone makes the code infinite; its sum counts as 1 here",
        ),
    ),
    Objective(
        "ada_meow",
        objectives.ada_meow,
        ada_meow,
        weighted,
        batch={"anchor": 0, "key": 0},
        paper=Paper(
            "AdaMEOW",
            MEOW,
            "the contrastive loss with adaptive weights",
            "`pair_cross_entropy` with `PairMLP`",
            official=lambda n, d: 3 * 4 * n * n * d,
        ),
    ),
    Objective(
        "proto_nce",
        objectives.proto_nce,
        proto_nce,
        centred,
        scalars={},
        constants=frozenset({"centroids", "concentrations"}),
        steepness=7.0,
        paper=Paper(
            "ProtoNCE, the second part of MEOW's loss",
            "https://arxiv.org/abs/2005.04966",
            "equation 11 without its first part",
            "`pair_cross_entropy` with `col_scale`",
            differs="the code's concentrations are larger for tighter clusters; they are given here",
        ),
    ),
)
