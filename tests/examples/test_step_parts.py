# SPDX-License-Identifier: Apache-2.0
"""What the trainer counts as the loss's time holds none of an encoder's backward."""

from __future__ import annotations

import torch
from helpers.example_runner import imported
from torch import Tensor, nn


class Laps:
    """A stopwatch that notes the order of things."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def lap(self, part: str) -> None:
        self.order.append(part)


def test_the_loss_ends_before_any_encoder_goes_backward() -> None:
    with imported("common.trainer") as trainer:
        pass

    class TwoEncoders(trainer.Task):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def embed(self, batch: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(batch), self.second(batch)

        def loss(self, embeddings: tuple[Tensor, Tensor], batch: Tensor) -> Tensor:
            return embeddings[0].exp().sum() + embeddings[1].sum()

    task, laps = TwoEncoders(), Laps()
    for name, layer in (("first", task.first), ("second", task.second)):
        layer.weight.register_hook(lambda _, name=name: laps.lap(name))
    task(torch.randn(4, 3), laps).backward()
    assert laps.order[:3] == ["encoder", "loss", "loss"]
    assert sorted(laps.order[3:]) == ["first", "second"]
