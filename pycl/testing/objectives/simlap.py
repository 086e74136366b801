# SPDX-License-Identifier: Apache-2.0
"""SimLAP: rows and formula."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl import objectives
from pycl.testing.formulas import Number, log_sum, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def simlap(
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    partners: tuple[Tensor, Tensor],
    gate: Tensor,
    temperature: Number,
    form: str = "query",
    per: str = "pair",
) -> Tensor:
    if form == "query":
        logits = (gate * gate * unit(query)) @ unit(key).T / temperature
    else:
        gated = unit(gate[:, None] * key)
        logits = (unit(gate * query)[:, None] * gated).sum(2) / temperature
    own, partner = (x[:, None] for x in partners)
    positive, negative = labels == partner, (labels != partner) & (labels != own)
    counts, some = positive.sum(1), negative.any(1, keepdim=True)
    margins = -logsigmoid(logits - log_sum(logits, negative)[:, None])
    of_anchors = torch.where(positive & some, margins, 0).sum(1)
    if per == "pair":
        return of_anchors.sum() / counts.sum().clamp_min(1)
    return (of_anchors / counts.clamp_min(1)).mean()


def gated(n: int, d: int) -> Arguments:
    m, classes = n + n // 3, 5
    labels, own = torch.randint(classes, (m,)), torch.randint(classes, (n,))
    return {
        "query": torch.randn(n, d, dtype=torch.float64),
        "key": torch.randn(m, d, dtype=torch.float64),
        "labels": labels,
        "partners": (own, torch.randint(classes + 1, (n,))),  # the last has no key
        "gate": torch.rand(n, d, dtype=torch.float64) * 0.9 + 0.1,
    }


BATCH = {"query": 0, "key": 0, "labels": 0, "partners": 0, "gate": 0}
ROWS = (
    Objective(
        "simlap",
        objectives.simlap,
        simlap,
        gated,
        batch=BATCH,
        cosine=False,  # of the gate, logits are squares
        paper=Paper(
            "SimLAP (Hydra)",
            "https://arxiv.org/abs/2410.18200",
            "the loss of class pairs",
            "`pair_stats`, `pair_sum`",
            official=lambda n, d: 4 * n * n * d,
            differs="the newest code gates the queries, as the default here; the paper's cosines are form='cosine'",
        ),
    ),
    Objective(
        "simlap per anchor", objectives.simlap, simlap, gated, options={"per": "anchor"}, batch=BATCH, cosine=False
    ),
    Objective("simlap cosine", objectives.simlap, simlap, gated, options={"form": "cosine"}, batch=BATCH),
)
