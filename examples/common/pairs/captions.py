# SPDX-License-Identifier: Apache-2.0
"""Sentences about real images, made from their classes and measured attributes, and an encoder of sentences.

Nobody wrote these captions: templates are filled with the class name and with what :mod:`common.attributes` measures,
by a generator with a fixed seed, so that all runs see the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from common.images.data import Dataset
from common.images.encoders import DIM
from common.pairs.attributes import Fact, facts_of

SENTENCES = 4  # of an image, in different words
TEMPLATES = (
    "a {brightness}, {colour} picture of {name} with {contrast} and {lines}, {light}",
    "{name} in a {brightness} picture, {colour}, {light}, with {lines} and {contrast}",
    "{contrast} and {lines}: a {brightness} and {colour} image of {name}, {light}",
    "this {colour} image shows {name}; it is {brightness} and {light}, with {contrast} and {lines}",
    "{light}, {brightness}, {colour} and with {lines}: {name}, {contrast}",
)
PAD, UNKNOWN = 0, 1
WIDTH, LAYERS, HEADS = 64, 2, 4


class Captions(NamedTuple):
    """The captions of N images.

    ``tokens`` int32 ``[N, SENTENCES, words]``; ``wrong`` the same with one fact of each sentence replaced; ``facts``
    int64 ``[N, facts]``; ``ids`` int64 ``[N]``, equal where all facts are: captions that say the same.
    """

    tokens: Tensor
    wrong: Tensor
    facts: Tensor
    ids: Tensor
    texts: list[str]  # the first sentence of each image

    def to(self, device: torch.device) -> Captions:
        return self._replace(**{name: x.to(device) for name, x in self._asdict().items() if isinstance(x, Tensor)})


class Captioned(NamedTuple):
    """Images with captions."""

    told: list[Fact]
    words: list[str]  # by token; those of the training captions
    train: Captions
    test: Captions

    def to(self, device: torch.device) -> Captioned:
        return self._replace(train=self.train.to(device), test=self.test.to(device))


def caption(data: Dataset) -> Captioned:
    """The captions of all images; the same for every seed of a run."""
    told, *tables = facts_of(data)
    generator = Generator().manual_seed(0)
    texts = [_write(told, table, generator) for table in tables]
    found = sorted({word for right_and_wrong in texts[0] for text in right_and_wrong for word in _split(text)})
    words = ["<pad>", "<unknown>", *found]
    numbers = {word: token for token, word in enumerate(words)}
    splits = []
    for table, (right, wrong) in zip(tables, texts, strict=True):
        tokens = _tokens([*right, *wrong], numbers).view(2, len(table), SENTENCES, -1)
        ids = table.unique(dim=0, return_inverse=True)[1]
        splits.append(Captions(*tokens, table, ids, right[::SENTENCES]))
    return Captioned(told, words, *splits)


def _write(told: Sequence[Fact], facts: Tensor, generator: Generator) -> tuple[list[str], list[str]]:
    """The sentences of all images, one after the other, and the same sentences with one fact replaced."""
    n, f = len(facts) * SENTENCES, len(told)
    facts = facts.repeat_interleave(SENTENCES, 0)
    sizes = torch.tensor([len(fact.phrases) for fact in told])
    which = torch.randint(f, (n,), generator=generator)
    by = 1 + (torch.rand(n, generator=generator) * (sizes[which] - 1)).long()  # so that the value is another one
    wrong = facts.clone()
    wrong[torch.arange(n), which] = (wrong[torch.arange(n), which] + by) % sizes[which]
    template = torch.randint(len(TEMPLATES), (n,), generator=generator).tolist()
    phrase = torch.randint(1 << 16, (n, f), generator=generator).tolist()
    return tuple(
        [_sentence(told, *row) for row in zip(values.tolist(), template, phrase, strict=True)]
        for values in (facts, wrong)
    )


def _sentence(told: Sequence[Fact], values: Sequence[int], template: int, phrase: Sequence[int]) -> str:
    parts = {"colour": "colourless"}  # of images without the fact
    for fact, value, choice in zip(told, values, phrase, strict=True):
        ways = fact.phrases[value]
        parts[fact.name] = ways[choice % len(ways)]
    return TEMPLATES[template].format(**parts)


def _split(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _tokens(texts: Sequence[str], numbers: dict[str, int]) -> Tensor:
    """Word numbers, filled up with ``PAD``."""
    rows = [[numbers.get(word, UNKNOWN) for word in _split(text)] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], dtype=torch.int32)


class TextTower(nn.Module):
    """A small Transformer over words: the mean of its last layer, projected to the loss's features."""

    def __init__(self, words: int, longest: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, WIDTH, padding_idx=PAD)
        self.position = nn.Parameter(0.02 * torch.randn(longest, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.project = nn.Linear(WIDTH, DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[N, words]`` become ``[N, DIM]``."""
        there = tokens != PAD
        z = self.word(tokens) + self.position[: tokens.shape[1]]
        z = self.layers(z, src_key_padding_mask=~there)
        share = there / there.sum(1, keepdim=True)
        return self.project((z * share.unsqueeze(2)).sum(1))
