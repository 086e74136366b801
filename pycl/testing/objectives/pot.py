# SPDX-License-Identifier: Apache-2.0
"""POT: rows and formulas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl import objectives
from pycl.testing.formulas import Number, log_sum, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def grace(h1: Tensor, h2: Tensor, temperature: Number) -> Tensor:
    a, b = unit(h1), unit(h2)
    n = len(a)
    free = torch.cat([torch.ones(n, n, dtype=torch.bool, device=a.device), others(n, a)], 1)
    of_a, of_b = (log_sum(torch.cat([x @ y.T, x @ x.T], 1) / temperature, free) for x, y in ((a, b), (b, a)))
    return ((of_a + of_b) / 2 - (a * b).sum(1) / temperature).mean()


def node_compactness(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    h2: Tensor,
    edge_index: Tensor,
    lower: Tensor,
    upper: Tensor,
    last_relu: bool = False,
) -> tuple[Tensor, Tensor]:
    n, n2 = len(x), unit(h2)
    w = n2 - others(n, n2).to(n2.dtype) @ n2 / max(n - 1, 1)
    ends = [x.new_zeros(n, n).index_put(tuple(edge_index), a.detach(), accumulate=True) for a in (lower, upper)]
    hidden = torch.stack([a[:, :, None] * (x @ weight1) for a in ends])  # both ends of every edge and unit
    z = [hidden.amin(0).sum(1) + bias1, hidden.amax(0).sum(1) + bias1]
    low, high = (a @ end.relu() for a, end in zip(ends, z, strict=True))
    if last_relu:
        products = torch.stack([low[:, :, None] * weight2, high[:, :, None] * weight2])
        z = [products.amin(0).sum(1) + bias2, products.amax(0).sum(1) + bias2]
        bound = torch.minimum(w * z[0].relu(), w * z[1].relu()).sum(1)
    else:
        v = w @ weight2.T
        bound = torch.minimum(v * low, v * high).sum(1) + w @ bias2
    return bound, -logsigmoid(bound).mean()


def two_views(n: int, d: int) -> Arguments:
    h1 = torch.randn(n, d, dtype=torch.float64)
    return {"h1": h1, "h2": h1 + 0.5 * torch.randn_like(h1)}


def graph(n: int, d: int) -> Arguments:
    f, h = 6, 7
    sizes = {"x": (n, f), "weight1": (f, h), "bias1": (h,), "weight2": (h, d), "bias2": (d,), "h2": (n, d)}
    made: Arguments = {name: torch.randn(size, dtype=torch.float64) / 2 for name, size in sizes.items()}
    loops = torch.arange(n).expand(2, n)
    made["edge_index"] = torch.cat([loops, torch.randint(0, n, (2, 3 * n))], 1)
    upper = torch.rand(4 * n, dtype=torch.float64)
    return {**made, "lower": upper * torch.rand_like(upper), "upper": upper}


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
            official=lambda n, d: 2 * 4 * n * n,
            differs="the code subtracts the self term from the sum; it is never added here",
        ),
    ),
    Objective(
        "node_compactness",
        objectives.node_compactness,
        node_compactness,
        graph,
        scalars={},
        constants=frozenset({"lower", "upper"}),
        backend=False,
        cosine=False,
        paper=Paper(
            "POT, node compactness",
            "https://arxiv.org/abs/2309.13944",
            "the bounded product, its direction and the loss on it; the bound is by intervals",
            "none: sparse products",
            official=lambda n, d: 2 * 4 * n * n,
            differs="the paper's bound is CROWN's; the code stores dense bounds of the adjacency",
        ),
    ),
    Objective(
        "node_compactness/last_relu",
        objectives.node_compactness,
        node_compactness,
        graph,
        scalars={},
        options={"last_relu": True},
        constants=frozenset({"lower", "upper"}),
        backend=False,
        cosine=False,
    ),
)
