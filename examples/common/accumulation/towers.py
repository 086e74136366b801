# SPDX-License-Identifier: Apache-2.0
"""Two small towers on the halves of scikit-learn's digits, and what a step of their training leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pycl

WIDTH, DIM = 64, 32


class Step(NamedTuple):
    """The mean of the losses that were computed, and the gradients that the optimizer was given."""

    loss: float
    weights: Tensor  # of all parameters but the scale, in one vector
    scale: float


class Towers(nn.Module):
    """Encoders of the left and the right half of an image, under the names that open_clip's models have.

    Args:
        norm: a layer of so many features, for each tower.
    """

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = (
            nn.Sequential(nn.Linear(32, WIDTH), norm(WIDTH), nn.GELU(), nn.Linear(WIDTH, DIM)) for _ in range(2)
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))  # log(1 / 0.07)
        self.losses: list[float] = []

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        found = {"image_features": F.normalize(self.left(images), dim=-1)}
        found["text_features"] = F.normalize(self.right(texts), dim=-1)
        return {**found, "logit_scale": self.logit_scale.exp()}

    def contrast(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor | None = None) -> Tensor:
        """CLIP's loss of a batch, kept in ``losses``."""
        scale = self.logit_scale.exp() if logit_scale is None else logit_scale
        loss = pycl.functional.clip(F.normalize(image_features), F.normalize(text_features), scale)
        self.losses.append(loss.item())
        return loss

    def taken(self) -> Step:
        """What a step left behind."""
        grads = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        scale = grads.pop("logit_scale")
        return Step(sum(self.losses) / len(self.losses), torch.cat([g.flatten() for g in grads.values()]), scale.item())


class Keep(torch.optim.Optimizer):
    """An optimizer that changes nothing and keeps what a step would have had."""

    def __init__(self, model: Towers) -> None:
        super().__init__(model.parameters(), {"lr": 0.0})
        self.model, self.steps = model, []

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            with torch.enable_grad():
                closure()
        self.steps.append(self.model.taken())


def halves(rows: int) -> tuple[Tensor, Tensor]:
    """The left and the right half of so many images, [rows, 32] each."""
    images = torch.from_numpy(load_digits().images).float()[:rows] / 16
    return images[:, :, :4].flatten(1), images[:, :, 4:].flatten(1)


def cut(pairs: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    """The micro-batches."""
    return list(zip(*(side.split(size) for side in pairs), strict=True))
