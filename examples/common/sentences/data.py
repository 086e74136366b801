# SPDX-License-Identifier: Apache-2.0
"""The STS benchmark: pairs of sentences, and how similar people found them.

Its English csv files are those of https://github.com/PhilipMay/stsb-multi-mt (folder ``data``), under the names
``train.csv`` or ``stsb-en-train.csv`` and so on.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor

from common.flags import Refused

HIGHEST = 5.0


class Pair(NamedTuple):
    """Two sentences and their similarity, from 0 to 5."""

    first: str
    second: str
    score: float


class Benchmark(NamedTuple):
    """The three splits. Settings are chosen on ``dev``, and ``test`` is what is reported."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]


def read(root: Path) -> Benchmark:
    """The benchmark in a folder.

    Raises:
        Refused: a file that is missing, or that is not a list of pairs with scores.
    """
    return Benchmark(*(_read_split(root, split) for split in Benchmark._fields))


def _read_split(root: Path, split: str) -> list[Pair]:
    paths = [root / f"{prefix}{split}.csv" for prefix in ("", "stsb-en-")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise Refused(f"--data-root: {root} has neither {paths[0].name} nor {paths[1].name}")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            pairs = [_pair(fields, f"{path}, row {n}") for n, fields in enumerate(csv.reader(file, strict=True), 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"--data-root: {path} cannot be read: {error}") from error
    if len(pairs) < 2:
        raise Refused(f"--data-root: {path} has {len(pairs)} pairs; a rank correlation takes two")
    return pairs


def _pair(fields: Sequence[str], where: str) -> Pair:
    try:
        first, second, score = fields
        pair = Pair(first, second, float(score))
    except ValueError as error:
        raise Refused(f"--data-root: {where} is not 'sentence,sentence,score': {str(fields)[:80]}") from error
    if not 0 <= pair.score <= HIGHEST:
        raise Refused(f"--data-root: {where} has the score {score}, which is not from 0 to {HIGHEST:g}")
    return pair


def spearman(first: Tensor, second: Tensor, pairs: Sequence[Pair]) -> float:
    """Rank correlation of the cosines of embeddings ``[N, d]`` with the scores."""
    cosines = torch.cosine_similarity(first.double(), second.double())
    return float(spearmanr(cosines.cpu().numpy(), [pair.score for pair in pairs]).statistic)
