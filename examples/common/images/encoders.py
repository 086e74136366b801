# SPDX-License-Identifier: Apache-2.0
"""Networks for small images: an encoder, whose features are kept, and a projector that only the loss sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.flags import Refused
from common.images.data import Dataset

WIDTHS = (32, 64, 128)
DIM = 128  # features of the embedding that the loss sees


class Small(nn.Sequential):
    """Three convolutions, 0.1 M parameters: what two cores can train in minutes."""

    def __init__(self, channels: int, side: int) -> None:
        stride = max(1, side // 16)  # the first layer always ends at 16x16, whatever the images
        layers: list[nn.Module] = []
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, stride + 2, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels, stride = width, 2
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.width = WIDTHS[-1]


def resnet18(channels: int, side: int) -> nn.Module:
    """torchvision's, with the stem for small images (arXiv 2002.05709, appendix B.9): 11 M parameters, for a GPU."""
    from pycl.bench.workloads.baselines import declare_torchvision

    declare_torchvision()
    try:
        from torchvision.models import resnet18 as torchvision_resnet18
    except ImportError as error:
        raise Refused("--encoder resnet18 takes torchvision: pip install torchvision") from error
    network = torchvision_resnet18()
    network.width = network.fc.in_features
    network.fc = nn.Identity()
    if side <= 64:
        network.conv1 = nn.Conv2d(channels, 64, 3, 1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    return network


ENCODERS = {"small": Small, "resnet18": resnet18}


def make(name: str, data: Dataset) -> nn.Module:
    """The encoder of that name for these images; ``width`` is the number of its features."""
    encoder: nn.Module = ENCODERS[name](data.channels, data.side)
    return encoder.to(memory_format=torch.channels_last)


def projector(width: int) -> nn.Sequential:
    """From the encoder's features to the loss's, ``DIM``."""
    return nn.Sequential(nn.Linear(width, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, DIM))


def encode(encoder: nn.Module, images: Tensor) -> Tensor:
    """Features of images in [0, 1], as a batch of a training step."""
    return encoder(images.contiguous(memory_format=torch.channels_last))
