# SPDX-License-Identifier: Apache-2.0
"""VSE++ and DBL: rows and formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def hinge(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def hardest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row and of each column but for the diagonal; -2 stands for none in ``[-1, 1]``."""
    negatives = scores.masked_fill(~others(len(scores), scores), -torch.inf)
    return negatives.gather(1, negatives.argmax(1)[:, None])[:, 0], negatives.gather(0, negatives.argmax(0)[None])[0]


def hardest_triplet(image: Tensor, text: Tensor, margin: Number, reduction: str = "sum") -> Tensor:
    s = unit(image) @ unit(text).T
    of_rows, of_cols = hardest(s)
    terms = hinge(margin + of_rows - s.diagonal()) + hinge(margin + of_cols - s.diagonal())
    return {"sum": terms.sum(), "mean": terms.mean(), "none": terms}[reduction]


def dbl_scores(
    scores: Tensor, anchor_scores: Tensor, margin: Number, form: str = "relative", positive_share: float = 0.5
) -> Tensor:
    difference = scores - anchor_scores.detach()
    own, (of_rows, of_cols) = difference.diagonal(), hardest(difference)
    if form == "relative":
        return (hinge(margin + of_rows - own) + hinge(margin + of_cols - own)).sum()
    m_own, m_rest = positive_share * margin, (1 - positive_share) * margin
    return (2 * hinge(m_own - own) + hinge(m_rest + of_rows) + hinge(m_rest + of_cols)).sum()


def dbl(
    image: Tensor,
    text: Tensor,
    anchor_image: Tensor,
    anchor_text: Tensor,
    margin: Number,
    form: str = "relative",
    positive_share: float = 0.5,
) -> Tensor:
    scores, anchor_scores = unit(image) @ unit(text).T, unit(anchor_image) @ unit(anchor_text).T
    return dbl_scores(scores, anchor_scores, margin, form, positive_share)


def pairs(n: int, d: int) -> Arguments:
    image = torch.randn(n, d, dtype=torch.float64)
    return {"image": image, "text": image + 3 * torch.randn_like(image)}  # hard enough for hinges in many dimensions


def pairs_of_two_models(n: int, d: int) -> Arguments:
    anchor = torch.randn(n, d + 2, dtype=torch.float64)
    return {**pairs(n, d), "anchor_image": anchor, "anchor_text": anchor + torch.randn_like(anchor)}


def two_matrices(n: int, d: int) -> Arguments:
    side = math.isqrt(n * d)
    scores, anchor_scores = torch.randn(2, side, side, dtype=torch.float64).tanh()
    return {"scores": scores, "anchor_scores": anchor_scores}


MARGIN = {"margin": 0.25}  # exact in every dtype, as a hinge at 0 must not depend on rounding
CONSTANT = frozenset({"anchor_image", "anchor_text", "anchor_scores"})
DBL = "https://arxiv.org/abs/2404.18114"
ABSOLUTE = {"form": "absolute", "positive_share": 0.3}

ROWS = (
    Objective(
        "hardest_triplet",
        objectives.hardest_triplet,
        hardest_triplet,
        pairs,
        MARGIN,
        batch={"image": 0, "text": 0},
        paper=Paper(
            "VSE++",
            "https://arxiv.org/abs/1707.05612",
            "equation 6",
            "`pair_extremes` of both sides",
            official=lambda n, d: 4 * n * n,
            differs="the code divides a zero row by 0, and masks on a GPU only",
        ),
    ),
    Objective(
        "hardest_triplet_mean",
        objectives.hardest_triplet,
        hardest_triplet,
        pairs,
        MARGIN,
        {"reduction": "mean"},
        batch={"image": 0, "text": 0},
    ),
    Objective(
        "dbl",
        objectives.dbl,
        dbl,
        pairs_of_two_models,
        MARGIN,
        constants=CONSTANT - {"anchor_scores"},
        paper=Paper(
            "DBL, from embeddings",
            DBL,
            "the relative and the absolute maximum form, with a fixed share",
            "`pair_extremes` of both sides, of the vectors of both models side by side",
            official=lambda n, d: 4 * n * n,
            differs="a soft share is in the paper only; it is fixed in the code and here",
        ),
    ),
    Objective(
        "dbl_absolute",
        objectives.dbl,
        dbl,
        pairs_of_two_models,
        MARGIN,
        ABSOLUTE,
        constants=CONSTANT - {"anchor_scores"},
    ),
    Objective(
        "dbl_scores",
        objectives.dbl_scores,
        dbl_scores,
        two_matrices,
        MARGIN,
        constants=frozenset({"anchor_scores"}),
        backend=False,
        cosine=False,
        paper=Paper(
            "DBL, from given scores",
            DBL,
            "the relative and the absolute maximum form, with a fixed share",
            "none: the scores are given as matrices",
            official=lambda n, d: 4 * n * n,
        ),
    ),
    Objective(
        "dbl_scores_absolute",
        objectives.dbl_scores,
        dbl_scores,
        two_matrices,
        MARGIN,
        ABSOLUTE,
        constants=frozenset({"anchor_scores"}),
        backend=False,
        cosine=False,
    ),
)
