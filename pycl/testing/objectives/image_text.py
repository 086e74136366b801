# SPDX-License-Identifier: Apache-2.0
"""Label-guided contrastive learning of images and texts: rows and formula."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl import objectives
from pycl.testing.formulas import Number, log_sum, others, unit
from pycl.testing.objectives.row import Arguments, Objective, Paper


def image_text_sup_con(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    temperature: Number,
    inner_image: Number = 1.0,
    inner_text: Number = 1.0,
) -> Tensor:
    alike = (labels[:, None] & labels).any(2) if labels.dtype == torch.bool else labels[:, None] == labels
    free = others(len(labels), image)

    def sup_con(x: Tensor, y: Tensor, candidates: Tensor, positives: Tensor) -> Tensor:
        s, count = x @ y.T / temperature, positives.sum(1)
        mean = torch.where(positives, s, 0).sum(1) / count.clamp(min=1)
        return (log_sum(s, candidates) - mean).masked_fill(count == 0, 0).mean()

    u, v, every = unit(image), unit(text), torch.ones_like(free)
    across = sup_con(u, v, every, alike | ~free) + sup_con(v, u, every, alike | ~free)
    return across + inner_image * sup_con(u, u, free, alike & free) + inner_text * sup_con(v, v, free, alike & free)


def with_classes(n: int, d: int) -> Arguments:
    image = torch.randn(n, d, dtype=torch.float64)
    return {"image": image, "text": image + torch.randn_like(image), "labels": torch.randint(-2, 2 + n // 3, (n,))}


def with_label_sets(n: int, d: int) -> Arguments:
    return with_classes(n, d) | {"labels": torch.rand(n, 9) < 0.15}


BATCH = {"image": 0, "text": 0, "labels": 0}
WEIGHTED = {"inner_image": 0.5, "inner_text": 2.0}

ROWS = (
    Objective(
        "image_text_sup_con",
        objectives.image_text_sup_con,
        image_text_sup_con,
        with_classes,
        batch=BATCH,
        steepness=20.0,  # four terms
        paper=Paper(
            "A Framework For Image Synthesis Using Supervised Contrastive Learning",
            "https://arxiv.org/abs/2412.03957",
            "between and within the modalities",
            "three `pair_stats`; with sets of labels `pair_average` and `pair_sum` under a `Limit`",
            differs="no code was released",
        ),
    ),
    Objective(
        "image_text_sup_con_weighted",
        objectives.image_text_sup_con,
        image_text_sup_con,
        with_classes,
        {"temperature": 0.2, **WEIGHTED},
        batch=BATCH,
        steepness=20.0,
    ),
    Objective(
        "image_text_sup_con_label_sets",
        objectives.image_text_sup_con,
        image_text_sup_con,
        with_label_sets,
        options=WEIGHTED,
        batch=BATCH,
        steepness=20.0,
    ),
    Objective(
        "image_text_sup_con_across",
        objectives.image_text_sup_con,
        image_text_sup_con,
        with_label_sets,
        options={"inner_image": 0.0, "inner_text": 0},
        batch=BATCH,
    ),
)
