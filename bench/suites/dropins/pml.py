# SPDX-License-Identifier: Apache-2.0
"""Rows of pytorch-metric-learning."""

from __future__ import annotations

from .row import DropIn, Make, classes, simclr


def _row(name: str, make: Make, views: int = 2, **limits: int) -> DropIn:
    library = "pytorch-metric-learning"
    return DropIn(f"PML {name}", library, "pytorch_metric_learning.losses", "pml.losses", make, views, **limits)


ROWS = (
    _row("NTXentLoss, two views", simclr(lambda m: m.NTXentLoss()), largest=256),
    _row("SelfSupervisedLoss(NTXentLoss)", lambda m: m.SelfSupervisedLoss(m.NTXentLoss()), largest=256),
    _row("SupConLoss, 8 a class", classes(lambda m: m.SupConLoss()), views=1),
)
