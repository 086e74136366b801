# SPDX-License-Identifier: Apache-2.0
"""Rows of sentence-transformers."""

from __future__ import annotations

from .row import DropIn, Encoder, embedded

ROWS = (
    DropIn(
        "sentence-transformers MultipleNegativesRankingLoss",
        "sentence-transformers",
        "sentence_transformers.losses",
        "sentence_transformers",
        embedded(lambda m: m.MultipleNegativesRankingLoss(Encoder(None))),
    ),
)
