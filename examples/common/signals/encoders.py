# SPDX-License-Identifier: Apache-2.0
"""Networks for signals ``[N, C, T]``. The encoders normalise within a signal, the projectors within a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 64  # of what a branch finds
DIM = 64  # of what the loss compares


class Convolutions(nn.Sequential):
    """Three convolutions in time over all channels, and the mean of what they find."""

    width = WIDTH

    def __init__(self, channels: int, samples: int, kernel: int = 15) -> None:
        layers: list[nn.Module] = []
        for width in (32, 64, WIDTH):
            layers += [nn.Conv1d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False)]
            layers += [nn.GroupNorm(8, width), nn.ReLU()]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())


class Transformer(nn.Module):
    """Two layers of attention over pieces of the signal, and the mean of what they find."""

    def __init__(self, channels: int, samples: int, piece: int = 16) -> None:
        super().__init__()
        self.pieces = nn.Conv1d(channels, WIDTH, piece, stride=piece // 2)
        self.position = nn.Parameter(0.02 * torch.randn((samples - piece) // (piece // 2) + 1, WIDTH))
        options = {"dim_feedforward": 2 * WIDTH, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(WIDTH, 4, **options) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.pieces(x).mT + self.position).mean(1)


class Branches(nn.Module):
    """The two of MVCNet side by side: what both found, ``[N, 2 * WIDTH]``."""

    width = 2 * WIDTH

    def __init__(self, channels: int, samples: int) -> None:
        super().__init__()
        self.cnn, self.transformer = Convolutions(channels, samples), Transformer(channels, samples)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.cnn(x), self.transformer(x)], 1)


def projector(width: int) -> nn.Sequential:
    """From what an encoder found to what the loss compares."""
    return nn.Sequential(nn.Linear(width, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, DIM))


class Halves(nn.Module):
    """A projector for each branch, side by side: ``[N, 2 * DIM]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cnn, self.transformer = projector(width // 2), projector(width // 2)

    def forward(self, found: Tensor) -> Tensor:
        cnn, transformer = found.chunk(2, -1)
        return torch.cat([self.cnn(cnn), self.transformer(transformer)], -1)


class Motion(nn.Module):
    """What moves: convolutions over the joints without their means over the clip, which are most of the signal."""

    width = WIDTH

    def __init__(self, channels: int, samples: int) -> None:
        super().__init__()
        self.layers = Convolutions(channels, samples, kernel=9)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x - x.mean(-1, keepdim=True))


ENCODERS = {"eeg": Branches, "skeleton": Motion}
