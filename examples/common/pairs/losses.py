# SPDX-License-Identifier: Apache-2.0
"""Losses of images and their captions, each with what it learns, and their dense forms in plain torch."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor, nn

import pycl
from pycl import objectives
from pycl.bench.workloads import dense
from pycl.functional import hard_negative_nce, info_nce
from pycl.testing.objectives import OBJECTIVES

WORLD = {"group": "world"}
MOST = math.log(100)  # CLIP's bound of the learned log scale


class PairLoss(nn.Module):
    """A loss of the unit vectors of image i and of caption i, and its dense form; which vectors, its example says."""

    def clamp(self) -> None:
        """Puts what is learnt back into its bounds, after an update."""


class LearnedScale(PairLoss):
    """A loss that learns the logarithm of its scale, the inverse of a temperature, as CLIP does."""

    temperature = property(lambda self: (-self.log_scale).exp())

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(args.temperature)))

    def clamp(self) -> None:
        self.log_scale.data.clamp_(max=MOST)


class Clip(LearnedScale):
    """CLIP: a softmax over the captions of the batch, and one over its images."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.criterion = pycl.CLIPLoss(**WORLD)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.criterion(image, text, self.log_scale.exp())

    def dense(self, image: Tensor, text: Tensor) -> Tensor:
        return dense.fastest("clip")(image, text, self.log_scale.exp())


class SigLip(LearnedScale):
    """SigLIP: every pair of the batch for itself, right or wrong, with a bias that starts where most are wrong."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.bias = nn.Parameter(torch.tensor(-10.0))
        self.criterion = pycl.SigLIPLoss(**WORLD)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.criterion(image, text, self.log_scale.exp(), self.bias)

    def dense(self, image: Tensor, text: Tensor) -> Tensor:
        return dense.fastest("siglip")(image, text, self.log_scale.exp(), self.bias)


class WrongCaptions(LearnedScale):
    """CLIP, and captions with a wrong fact among the candidates of all images (NegCLIP, arXiv 2210.01936)."""

    def forward(self, image: Tensor, text: Tensor, wrong: Tensor) -> Tensor:
        return self._both(info_nce, image, text, wrong, **WORLD)

    def dense(self, image: Tensor, text: Tensor, wrong: Tensor) -> Tensor:
        return self._both(dense.fastest("info_nce"), image, text, wrong)

    def _both(self, loss: Any, image: Tensor, text: Tensor, wrong: Tensor, **options: Any) -> Tensor:
        options["temperature"] = self.temperature
        return (loss(image, text, wrong, in_batch=True, **options) + loss(text, image, **options)) / 2


class HardNegatives(PairLoss):
    """Image and caption as two views whose negatives, of both kinds, weigh more where they are similar (HCL)."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.options = {"temperature": args.temperature, "beta": args.beta}

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return hard_negative_nce((image, text), **self.options, **WORLD)

    def dense(self, image: Tensor, text: Tensor) -> Tensor:
        return dense.fastest("hard_negative_nce")(torch.stack([image, text]), **self.options)


class HardestTriplet(PairLoss):
    """VSE++: hinges against the hardest wrong caption and the hardest wrong image alone."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.margin = args.margin

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return objectives.hardest_triplet(image, text, margin=self.margin, **WORLD)

    def dense(self, image: Tensor, text: Tensor) -> Tensor:
        return OBJECTIVES["hardest_triplet"].formula(image, text, self.margin)


class Boosted(HardestTriplet):
    """DBL: VSE++ for two models side by side, of which the one that is kept has to beat the other one by a margin."""

    def forward(self, image: Tensor, text: Tensor, anchor_image: Tensor, anchor_text: Tensor) -> Tensor:
        both = super().forward(image, text) + super().forward(anchor_image, anchor_text)
        return both + objectives.dbl(image, text, anchor_image, anchor_text, margin=self.margin)

    def dense(self, image: Tensor, text: Tensor, anchor_image: Tensor, anchor_text: Tensor) -> Tensor:
        both = super().dense(image, text) + super().dense(anchor_image, anchor_text)
        return both + OBJECTIVES["dbl"].formula(image, text, anchor_image, anchor_text, self.margin)


LOSSES: dict[str, type[PairLoss]] = {
    "clip": Clip,
    "siglip": SigLip,
    "wrong_captions": WrongCaptions,
    "hard_negatives": HardNegatives,
    "vse++": HardestTriplet,
    "dbl": Boosted,
}
