# SPDX-License-Identifier: Apache-2.0
"""A row of the drop-ins that are measured, and how losses of different callings become functions of tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...workloads.workload import Function

Make = Callable[[Any], Function]  # the loss on tensors, from the module that has its class


class DropIn(NamedTuple):
    """A loss of a library and the drop-in that stands for it."""

    name: str
    distribution: str
    peer: str  # the module there
    ours: str  # the module in pycl.compat
    make: Make
    views: int = 2  # tensors [N, d] with a gradient
    largest: int = sys.maxsize  # N beyond which the peer takes 9 GB or more
    classes: int = 0  # rows of one more tensor [classes, d] with a gradient, of class weights


class Encoder(nn.Module):
    """Stands for a sentence model: embeddings are what it is given."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}


def simclr(make: Make) -> Make:
    """A loss on labelled rows, for two views: row i of one and row i of the other have label i."""

    def build(module: Any) -> Function:
        loss = make(module)
        return lambda a, b: loss(torch.cat([a, b]), torch.arange(len(a)).repeat(2))

    return build


def classes(make: Make) -> Make:
    """A loss on labelled rows, eight of each class."""

    def build(module: Any) -> Function:
        loss = make(module)
        return lambda a: loss(a, torch.arange(len(a)) % max(1, len(a) // 8))

    return build


def over_classes(make: Callable[[Any, int, int], Any], weights: str) -> Make:
    """A loss on labelled rows with a parameter of that name, [d, classes] for ``W`` and else [classes, d], as input."""

    def build(module: Any) -> Function:
        losses: dict[tuple[int, ...], Any] = {}

        def run(a: Tensor, given: Tensor) -> Tensor:
            shape = tuple(given.shape)
            if shape not in losses:
                losses[shape] = make(module, *shape)
                del losses[shape]._parameters[weights]
            setattr(losses[shape], weights, given.t() if weights == "W" else given)
            value: Tensor = losses[shape](a, torch.arange(len(a)) * 37 % len(given))
            return value

        return run

    return build


def scaled(make: Make) -> Make:
    """A loss of unit image and text features, a scale of 10 and a bias of -10."""

    def build(module: Any) -> Function:
        loss, scale, bias = make(module), torch.tensor(10.0), torch.tensor(-10.0)
        return lambda a, b: loss(unit(a), unit(b), scale, bias)

    return build


def embedded(make: Make) -> Make:
    """A loss with a method for embeddings beside the call."""

    def build(module: Any) -> Function:
        loss: Any = make(module)
        return lambda *views: loss.compute_loss_from_embeddings(list(views), None)

    return build


def unit(z: Tensor) -> Tensor:
    return torch.nn.functional.normalize(z, dim=1)
