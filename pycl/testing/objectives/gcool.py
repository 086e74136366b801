# SPDX-License-Identifier: Apache-2.0
"""gCooL's community loss and DeCA: rows and formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def gcool_community(
    h1: Tensor,
    h2: Tensor,
    centers: Tensor,
    temperature: Number,
    similarity: str = "cos",
    gamma: Number = 5e-5,
) -> Tensor:
    views = unit(h1), unit(h2)
    owns = [(x.detach() @ unit(centers.detach()).T).argmax(1) for x in views]
    terms = []
    for x, y, own in ((views[0], views[1], owns[1]), (views[1], views[0], owns[0])):
        members = torch.nn.functional.one_hot(own, len(centers)).to(x.dtype).T
        means = (members @ y.detach()) / members.sum(1, keepdim=True).clamp_min(1)
        if similarity == "cos":
            logits, log_weights = x @ means.T / temperature, torch.zeros(())
        else:
            logits = -(x[:, None] - means).square().sum(2) / temperature**2
            log_weights = -gamma * (means[:, None] - means).square().sum(2)[own]
        positive = logits.gather(1, own[:, None])[:, 0]
        terms.append((logits + log_weights).logsumexp(1) - positive)
    return (terms[0] + terms[1]).mean() / 2


def deca(assignment: Tensor, edge_index: Tensor, resolution: Number = 1.0) -> Tensor:
    n = len(assignment)
    spread = (assignment.T @ assignment).trace() / (2 * n)
    if n == 1:
        return spread
    adjacency = assignment.new_zeros(n, n)
    adjacency[edge_index[0], edge_index[1]] = 1
    f = assignment.T @ adjacency @ assignment
    return (resolution * f.sum() - (n - 1 + resolution) * f.trace()) / (n * (n - 1)) + spread


def two_views(n: int, d: int) -> Arguments:
    h1, k = torch.randn(n, d, dtype=torch.float64), 6
    centers = torch.randn(k, d, dtype=torch.float64)
    return {"h1": h1, "h2": h1 + 0.5 * torch.randn_like(h1), "centers": centers}


def graph(n: int, d: int) -> Arguments:
    assignment = torch.randn(n, d, dtype=torch.float64).softmax(1)
    edges = torch.randint(n, (2, 3 * n))
    return {"assignment": assignment, "edge_index": torch.cat([edges, edges[:, :n]], 1)}


GCOOL = "https://arxiv.org/abs/2110.14863"
ROWS = (
    Objective(
        "gcool_community",
        objectives.gcool_community,
        gcool_community,
        two_views,
        constants=frozenset({"centers"}),
        paper=Paper(
            "gCooL, communities across views",
            GCOOL,
            "the cross-view community loss",
            "`pair_cross_entropy`, with `LabelTable` for the weights",
            differs="the code's second direction is a copy of the first; here it is the reverse",
        ),
    ),
    Objective(
        "gcool_community rbf",
        objectives.gcool_community,
        gcool_community,
        two_views,
        scalars={"gamma": 0.3},
        options={"similarity": "rbf", "temperature": 0.5},  # at 0.01 its gradients, by 1 / T^2, leave float16
        constants=frozenset({"centers"}),
        steepness=8.0,
    ),
    Objective(
        "deca",
        objectives.deca,
        deca,
        graph,
        scalars={"resolution": 0.7},
        backend=False,
        steepness=1.0,
        cosine=False,
        paper=Paper(
            "gCooL, DeCA",
            GCOOL,
            "the density of communities",
            "sparse products",
            official=lambda n, d: 4 * n * n,
        ),
    ),
)
