# SPDX-License-Identifier: Apache-2.0
"""Random views of a whole batch of images, by kornia. They draw from torch's own generator."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn


class Augment(nn.Module):
    """Images uint8 ``[N, C, H, W]`` become ``n`` views each, views-major ``[n * N, C, S, S]``, float in [0, 1].

    Photographs (three channels) are cropped, mirrored and recoloured, drawings (one channel) turned, stretched and
    partly erased. Views may be small crops, half as wide.
    """

    def __init__(self, channels: int, side: int, *, small: bool = False) -> None:
        super().__init__()
        parts = photo(side, small) if channels == 3 else drawing(side, small)
        self.transform = nn.Sequential(*parts)

    @torch.no_grad()
    def forward(self, images: Tensor, n: int = 1) -> Tensor:
        # outside autocast: kornia's colours are not made for half types
        with torch.autocast(images.device.type, enabled=False):
            return self.transform(images.float().div(255).repeat(n, 1, 1, 1)).clamp_(0, 1)


def photo(side: int, small: bool) -> list[nn.Module]:
    """SimCLR's views (arXiv 2002.05709, appendix A) without blur, which 32 pixels do not bear, and without hue, which
    takes kornia twice as long as all the rest."""
    scale = (0.05, 0.3) if small else (0.2, 1.0)
    return [
        K.RandomResizedCrop((side // 2,) * 2 if small else (side,) * 2, scale=scale),
        K.RandomHorizontalFlip(),
        K.RandomBrightness((0.6, 1.4), p=0.8),
        K.RandomContrast((0.6, 1.4), p=0.8),
        K.RandomSaturation((0.6, 1.4), p=0.8),
        K.RandomGrayscale(p=0.2),
    ]


def drawing(side: int, small: bool) -> list[nn.Module]:
    """Pen strokes: shift, turn, stretch and shear, contrast, noise, an erased patch. No mirroring: 6 is not 9."""
    if small:
        parts = [K.RandomAffine(18.0, shear=9.0, p=1.0), K.RandomResizedCrop((side // 2,) * 2, scale=(0.25, 0.56))]
    else:
        parts = [K.RandomAffine(18.0, translate=(0.12, 0.12), scale=(0.8, 1.2), shear=9.0, p=1.0)]
        parts.append(K.RandomErasing(scale=(0.05, 0.12), p=0.5))
    return [*parts, K.RandomContrast((0.7, 1.3), p=1.0), K.RandomGaussianNoise(std=0.08, p=1.0)]
