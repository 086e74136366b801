# SPDX-License-Identifier: Apache-2.0
"""A training of the examples' loop that takes milliseconds: a line on random points. Also a program of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

import torch
from common import flags, ranks
from common.trainer import Task, Trainer
from torch import Generator, Tensor, nn

import pycl
from pycl.testing import formulas

POINTS, WIDTH, DIM = 40, 6, 8


class Line(Task):
    """Two noisy views of random points; what this rank has seen is added up in a buffer."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.size, self.noise = POINTS, noise
        self.points = torch.randn(POINTS, WIDTH, generator=Generator().manual_seed(5))
        self.encoder = nn.Linear(WIDTH, DIM)
        self.criterion = pycl.NTXentLoss(0.5, learnable_temperature=True, group="world")
        self.register_buffer("seen", torch.zeros(WIDTH))

    def batch(self, rows: Tensor) -> Tensor:
        x = self.points[rows]
        self.seen += x.sum(0)
        views = torch.stack([x, x.roll(1, dims=1)])
        return views + self.noise * torch.randn(views.shape)

    def embed(self, batch: Tensor) -> Tensor:
        return self.encoder(batch)

    def loss(self, embeddings: Tensor, batch: Tensor) -> Tensor:
        return self.criterion(embeddings)

    def dense_loss(self, embeddings: Tensor, batch: Tensor) -> Tensor:
        return formulas.nt_xent(embeddings, self.criterion.temperature).mean()

    def measure(self, thorough: bool) -> dict[str, Any]:
        return {"length": self.encoder.weight.norm().item(), "draw": torch.rand(()).item(), "thorough": thorough}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = flags.make_parser(__doc__, out="unused", batch_size=8, epochs=2, lr=1e-2, temperature=0.5)
    parser.add_argument("--noise", type=float, default=0.1)
    return flags.parse(parser, argv)


def main(argv: list[str] | None = None) -> Trainer:
    args = parse(sys.argv[1:] if argv is None else argv)
    with flags.one_line(), ranks.start(args.device) as here:
        torch.manual_seed(args.seed)
        trainer = Trainer(Line(args.noise), args, here)
        trainer.fit()
        return trainer


if __name__ == "__main__":
    main()
