# SPDX-License-Identifier: Apache-2.0
"""What is trained: encoders of random weights, random batches, and three forms of one loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..suites.dropins import DROPINS, DropIn
from ..workloads.dense import fastest
from ..workloads.workload import Function

TOKENS, VOCABULARY = 16, 30522  # of a sentence: what a caption or a pair of a similarity data set has
PIXELS = 32
WIDTH = 512  # of the embeddings of CLIP

Encoders = tuple[nn.Module, nn.Module]  # one for each side of a pair, maybe the same one twice


class Recipe(NamedTuple):
    """A model with its loss.

    Attributes:
        unit: what a row of either side is.
        build: the encoders.
        batch: N rows for either encoder.
        dropin: name of the row of ``DROPINS`` with the library's loss, and ours of its name.
        dense: the formula in the fastest spelling that stores the matrix.
    """

    title: str
    unit: str
    build: Callable[[], Encoders]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    dropin: str
    dense: Function

    @property
    def library(self) -> DropIn:
        return next(row for row in DROPINS if row.name == self.dropin)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)  # a batch norm would see chunks


def _resnet() -> Encoders:
    from torchvision.models import resnet18

    model = resnet18(num_classes=128, norm_layer=_group_norm)
    return model, model


class _Text(nn.Module):
    """A BERT of MiniLM's width, its outputs averaged, maybe with a projection."""

    def __init__(self, layers: int, project: int | None = None) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        options: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
        config = BertConfig(num_hidden_layers=layers, vocab_size=VOCABULARY, **options)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Identity() if project is None else nn.Linear(384, project)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.bert(tokens).last_hidden_state.mean(1))
        return found


def _minilm() -> Encoders:
    model = _Text(layers=3)
    return model, model


def _clip() -> Encoders:
    from torchvision.models import VisionTransformer

    shape = {"num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}  # ViT-Ti
    image = VisionTransformer(image_size=PIXELS, patch_size=8, num_classes=WIDTH, **shape)
    return image, _Text(layers=2, project=WIDTH)


def _images(n: int) -> Tensor:
    return torch.randn(n, 3, PIXELS, PIXELS)


def _tokens(n: int) -> Tensor:
    return torch.randint(VOCABULARY, (n, TOKENS))


def _dense_simclr(a: Tensor, b: Tensor) -> Tensor:
    value: Tensor = fastest("nt_xent")(torch.stack([a, b]), 0.5)
    return value


def _dense_clip(image: Tensor, text: Tensor) -> Tensor:
    value: Tensor = fastest("clip")(F.normalize(image, dim=1), F.normalize(text, dim=1), 10.0)
    return value


def _dense_ranking(a: Tensor, b: Tensor) -> Tensor:
    value: Tensor = fastest("info_nce")(a, b, temperature=0.05)
    return value


RECIPES = {
    "simclr": Recipe(
        "SimCLR, ResNet-18, 32 x 32 pixels",
        "images",
        _resnet,
        lambda n: (_images(n), _images(n)),
        "lightly NTXentLoss",
        _dense_simclr,
    ),
    "clip": Recipe(
        "CLIP, ViT-Ti/8 and 2 layers of text",
        "pairs",
        _clip,
        lambda n: (_images(n), _tokens(n)),
        "open_clip ClipLoss",
        _dense_clip,
    ),
    "minilm": Recipe(
        "Sentence pairs, MiniLM-L3, 16 tokens",
        "pairs",
        _minilm,
        lambda n: (_tokens(n), _tokens(n)),
        "sentence-transformers MultipleNegativesRankingLoss",
        _dense_ranking,
    ),
}
