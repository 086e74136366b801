# SPDX-License-Identifier: Apache-2.0
"""PCL-SR: rows and formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pycl import objectives
from pycl.testing.formulas import unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def paired_info_nce(anchor: Tensor, positives: Sequence[Tensor], negatives: Sequence[Tensor]) -> Tensor:
    def s(x: Tensor) -> Tensor:
        a, b = unit(anchor.permute(0, 2, 3, 1)), unit(x.detach().permute(0, 2, 3, 1))
        return torch.einsum("ihwc,ihwc->ihw", a, b).mean((1, 2))

    first = torch.zeros(len(anchor), dtype=torch.int64, device=anchor.device)
    terms = [cross_entropy(torch.stack([s(p), *map(s, negatives)], 1), first) for p in positives]
    return torch.stack(terms).mean()


def dual_contrastive(real: Tensor, fake: Tensor) -> Tensor:
    def side(x: Tensor, y: Tensor) -> Tensor:
        """The mean cross entropy of every x against all of y."""
        logits = torch.cat([x[:, None], y.expand(len(x), len(y))], 1)
        return (logits.logsumexp(1) - x).mean()

    return side(real, fake) + side(-fake, -real)


def feature_maps(n: int, d: int) -> Arguments:
    anchor = torch.randn(n, d, 2, 2, dtype=torch.float64)
    positives, negatives = ([anchor + r * torch.randn_like(anchor) for _ in range(2)] for r in (0.5, 2.0))
    return {"anchor": anchor, "positives": positives, "negatives": negatives}


def logits(n: int, d: int) -> Arguments:
    return {"real": torch.randn(n, dtype=torch.float64) + 1, "fake": torch.randn(n + d, dtype=torch.float64) - 1}


PCL_SR = "https://arxiv.org/abs/2111.13924"

ROWS = (
    Objective(
        "paired_info_nce",
        objectives.paired_info_nce,
        paired_info_nce,
        feature_maps,
        {},
        constants=frozenset({"positives", "negatives"}),
        backend=False,
        steepness=1.0,
        paper=Paper(
            "PCL-SR",
            PCL_SR,
            "the contrastive loss",
            "none: no image meets another one",
            differs="the released code has no gradient for the network's output; the paper and we have",
        ),
    ),
    Objective(
        "dual_contrastive",
        objectives.dual_contrastive,
        dual_contrastive,
        logits,
        {},
        backend=False,
        steepness=1.0,
        cosine=False,
        paper=Paper(
            "PCL-SR, the discriminator",
            PCL_SR,
            "the dual contrastive loss, of arXiv 2103.16748",
            "none: log-sum-exps of two vectors",
            official=lambda n, d: 4 * n * (1 + n),
        ),
    ),
)
