# SPDX-License-Identifier: Apache-2.0
"""Rows of sentence-transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...workloads.workload import Function
from .row import DropIn, Encoder, classes, embedded


def margins(module: Any) -> Function:
    """``MegaBatchMarginLoss`` of the embeddings of a batch."""
    loss: Any = module.MegaBatchMarginLoss(Encoder(None), use_mini_batched_version=False)

    def step(anchors: Tensor, positives: Tensor) -> Tensor:
        found: Tensor = loss.calculate_loss([[anchors], [positives]])
        return found

    return step


def triplets(module: Any) -> Function:
    """``BatchHardTripletLoss`` on rows with labels."""
    loss: Any = module.BatchHardTripletLoss(Encoder(None))

    def step(rows: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = loss.compute_loss_from_embeddings([rows], labels)
        return found

    return step


ROWS = (
    DropIn(
        "sentence-transformers MultipleNegativesRankingLoss",
        "sentence-transformers",
        "sentence_transformers.losses",
        "sentence_transformers",
        embedded(lambda m: m.MultipleNegativesRankingLoss(Encoder(None))),
    ),
    DropIn(
        "sentence-transformers SparseMultipleNegativesRankingLoss",
        "sentence-transformers",
        "sentence_transformers.sparse_encoder.losses",
        "sentence_transformers.sparse_encoder.losses",
        embedded(lambda m: m.SparseMultipleNegativesRankingLoss(Encoder(None))),
    ),
    DropIn(
        "sentence-transformers MegaBatchMarginLoss",
        "sentence-transformers",
        "sentence_transformers.losses",
        "sentence_transformers",
        margins,
    ),
    DropIn(
        "sentence-transformers BatchHardTripletLoss",
        "sentence-transformers",
        "sentence_transformers.losses",
        "sentence_transformers",
        classes(triplets),
        views=1,
    ),
)
