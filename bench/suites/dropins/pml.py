# SPDX-License-Identifier: Apache-2.0
"""Rows of pytorch-metric-learning."""

from __future__ import annotations

from .row import DropIn, Make, classes, over_classes, simclr

CLASSES = 100_000


def _row(name: str, make: Make, views: int = 2, **limits: int) -> DropIn:
    library = "pytorch-metric-learning"
    return DropIn(f"PML {name}", library, "pytorch_metric_learning.losses", "pml.losses", make, views, **limits)


def _of_classes(name: str, make: Make, **limits: int) -> DropIn:
    return _row(f"{name}, {CLASSES // 1000} 000 classes", make, views=1, classes=CLASSES, **limits)


ROWS = (
    _row("NTXentLoss, two views", simclr(lambda m: m.NTXentLoss()), largest=256),
    _row("SelfSupervisedLoss(NTXentLoss)", lambda m: m.SelfSupervisedLoss(m.NTXentLoss()), largest=256),
    _row("SupConLoss, 8 a class", classes(lambda m: m.SupConLoss()), views=1),
    _row("MultiSimilarityLoss, 8 a class", classes(lambda m: m.MultiSimilarityLoss()), views=1),
    _row("GeneralizedLiftedStructureLoss, 8 a class", classes(lambda m: m.GeneralizedLiftedStructureLoss()), views=1),
    _row("CircleLoss, 8 a class", classes(lambda m: m.CircleLoss()), views=1),
    _row("NCALoss, 8 a class", classes(lambda m: m.NCALoss()), views=1),
    _row("InstanceLoss, 8 a class", classes(lambda m: m.InstanceLoss()), views=1),
    _of_classes("ArcFaceLoss", over_classes(lambda m, c, d: m.ArcFaceLoss(c, d), "W")),
    _of_classes("NormalizedSoftmaxLoss", over_classes(lambda m, c, d: m.NormalizedSoftmaxLoss(c, d), "W")),
    _of_classes("ProxyAnchorLoss", over_classes(lambda m, c, d: m.ProxyAnchorLoss(c, d), "proxies"), largest=512),
)
