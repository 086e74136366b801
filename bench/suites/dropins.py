# SPDX-License-Identifier: Apache-2.0
"""The drop-ins that are measured, each with the library whose loss it stands for, and how both are called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..workloads.workload import Function

DIMS, SIZES = (128, 512), (128, 512, 2048)
Make = Callable[[Any], Function]  # the loss on tensors, from the module that has its class


class DropIn(NamedTuple):
    name: str
    distribution: str
    peer: str  # the module there
    ours: str  # the module in pycl.compat
    make: Make
    views: int = 2  # tensors [N, d] with a gradient
    largest: int = sys.maxsize  # N beyond which the peer takes 9 GB or more


class _Encoder(nn.Module):
    """Stands for a sentence model: embeddings are what it is given."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}


def _simclr(make: Make) -> Make:
    """A loss on labelled rows, for two views: row i of one and row i of the other have label i."""

    def build(module: Any) -> Function:
        loss = make(module)
        return lambda a, b: loss(torch.cat([a, b]), torch.arange(len(a)).repeat(2))

    return build


def _classes(make: Make) -> Make:
    """A loss on labelled rows, eight of each class."""

    def build(module: Any) -> Function:
        loss = make(module)
        return lambda a: loss(a, torch.arange(len(a)) % max(1, len(a) // 8))

    return build


def _scaled(make: Make) -> Make:
    def build(module: Any) -> Function:
        loss, scale, bias = make(module), torch.tensor(10.0), torch.tensor(-10.0)
        return lambda a, b: loss(_unit(a), _unit(b), scale, bias)

    return build


def _embedded(make: Make) -> Make:
    def build(module: Any) -> Function:
        loss: Any = make(module)  # a module with a method for embeddings beside the call
        return lambda *views: loss.compute_loss_from_embeddings(list(views), None)

    return build


def _unit(z: Tensor) -> Tensor:
    return torch.nn.functional.normalize(z, dim=1)


PML, ST = "pytorch_metric_learning.losses", "sentence_transformers.losses"
DROPINS = (
    DropIn("lightly NTXentLoss", "lightly", "lightly.loss", "lightly", lambda m: m.NTXentLoss()),
    DropIn("lightly DCLLoss", "lightly", "lightly.loss", "lightly", lambda m: m.DCLLoss()),
    DropIn("lightly DCLWLoss", "lightly", "lightly.loss", "lightly", lambda m: m.DCLWLoss()),
    DropIn("open_clip ClipLoss", "open_clip_torch", "open_clip.loss", "open_clip", _scaled(lambda m: m.ClipLoss())),
    DropIn("open_clip SigLipLoss", "open_clip_torch", "open_clip.loss", "open_clip", _scaled(lambda m: m.SigLipLoss())),
    DropIn(
        "PML NTXentLoss, two views",
        "pytorch-metric-learning",
        PML,
        "pml.losses",
        _simclr(lambda m: m.NTXentLoss()),
        largest=256,
    ),
    DropIn(
        "PML SelfSupervisedLoss(NTXentLoss)",
        "pytorch-metric-learning",
        PML,
        "pml.losses",
        lambda m: m.SelfSupervisedLoss(m.NTXentLoss()),
        largest=256,
    ),
    DropIn(
        "PML SupConLoss, 8 a class",
        "pytorch-metric-learning",
        PML,
        "pml.losses",
        _classes(lambda m: m.SupConLoss()),
        views=1,
    ),
    DropIn("info-nce-pytorch InfoNCE", "info-nce-pytorch", "info_nce", "info_nce", lambda m: m.InfoNCE()),
    DropIn(
        "sentence-transformers MultipleNegativesRankingLoss",
        "sentence-transformers",
        ST,
        "sentence_transformers",
        _embedded(lambda m: m.MultipleNegativesRankingLoss(_Encoder(None))),
    ),
)
