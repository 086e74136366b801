# SPDX-License-Identifier: Apache-2.0
"""Recommend the next item from a user's sequence of items: a Transformer, alone or with the contrast of MCLRec.

    python examples/sequential_recommendation.py --data-root Video.txt                        # MCLRec
    python examples/sequential_recommendation.py --data-root Video.txt --contrast none nt_xent mclrec --seeds 3
    torchrun --nproc_per_node=2 examples/sequential_recommendation.py ...

``--data-root`` is a file of lines ``user item`` in time order (or a folder with one): data/Video.txt of
https://github.com/kang205/SASRec. A user's last item is the test, the one before it the validation, the others train.
Every position predicts the next item by a softmax over all items (SASRec). ``--contrast`` adds a term: ``nt_xent``
compares two augmentations of a sequence (CL4SRec), ``mclrec`` also learned views of them (MCLRec, arXiv 2304.07763).

MCLRec's authors take turns on a batch: encoder, augmenters, encoder. Here one step updates both by one objective, what
their code calls ``joint``. The augmenters' gradient is then that of their own stage times --contrast-weight, a factor
that AdamW divides out. On several ranks ``mclrec``, which takes no group, contrasts each rank's part of the batch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import flags, ranks, runs
from common.sequences import data as sequences
from common.sequences import ranking
from common.sequences.data import Sequences, augment, pad
from common.sequences.encoder import DIM, Encoder, last
from common.trainer import Task, Trainer
from torch import Tensor, nn

import pycl
from pycl import objectives, viz
from pycl.bench.workloads import dense
from pycl.testing.objectives.mclrec import mclrec as dense_mclrec

DESCRIBED = 512  # users whose augmentations show the shape of the embedding
KINDS = {"hr": "HR", "ndcg": "NDCG"}
MEASURES = {f"test_{key}_{k}": (f"{label}@{k} (%)", 100, 2) for key, label in KINDS.items() for k in ranking.CUTS}


class Contrast(nn.Module):
    """No contrast: the next-item loss alone."""

    n_views = 0
    weight = 0.0

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        if args.contrast_weight is not None:
            self.weight = args.contrast_weight

    def embed(self, h: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the contrast compares, from the two augmentations' representations."""
        return tuple(h)


class CL4SRec(Contrast):
    """Two augmentations of a sequence are close, those of two sequences are not."""

    n_views = 2
    weight = 0.1

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.loss = pycl.NTXentLoss(args.temperature, group="world")

    def forward(self, h1: Tensor, h2: Tensor) -> Tensor:
        return self.loss(h1, h2)

    def dense(self, h1: Tensor, h2: Tensor) -> Tensor:
        return dense.fastest("nt_xent")(torch.stack([h1, h2]), temperature=self.args.temperature)


class MCLRec(Contrast):
    """The augmentations, and what two learned augmenters make of them."""

    n_views = 2
    weight = 0.01  # of the authors' configuration; their scripts have 0.05 to 0.4 for other data

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.augmenters = nn.ModuleList(_augmenter() for _ in range(2))

    def embed(self, h: Sequence[Tensor]) -> tuple[Tensor, ...]:
        v = [F.normalize(augmenter(x).float(), dim=1) for augmenter, x in zip(self.augmenters, h, strict=True)]
        return *h, *v

    def forward(self, h1: Tensor, h2: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
        return objectives.mclrec(h1, h2, v1, v2, regularizer=self.args.regularizer)

    def dense(self, h1: Tensor, h2: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
        return dense_mclrec(h1, h2, v1, v2, self.args.regularizer)


def _augmenter() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, DIM))


CONTRASTS = {"none": Contrast, "nt_xent": CL4SRec, "mclrec": MCLRec}


class Batch(NamedTuple):
    """Padded sequences ``[B, L]``, the items that follow theirs, and augmentations of them."""

    items: Tensor
    targets: Tensor
    views: list[Tensor]


class NextItem(Task):
    """The next item, over all items, and a contrast of augmentations beside it.

    The embeddings are the next-item loss, which counts as the encoder's work in the profile, and what the contrast
    compares: the profile's "loss" is the contrast.
    """

    def __init__(self, data: Sequences, args: argparse.Namespace) -> None:
        super().__init__()
        self.data, self.args, self.size = data, args, len(data.users)
        self.encoder = Encoder(data.items, args.length, args.dropout)
        self.contrast = CONTRASTS[args.contrast](args)

    def batch(self, rows: Tensor) -> Batch:
        items = pad((self.data.users[row][:-2] for row in rows.tolist()), self.args.length).to(rows.device)
        views = [augment(items, self.encoder.mask_item) for _ in range(self.contrast.n_views)]
        return Batch(items, F.pad(items[:, 1:], (0, 1)), views)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        states, known = self.encoder(batch.items), batch.targets > 0
        scores = self.encoder.scores(states[known]).float()
        scores[:, 0] = -torch.inf
        next_item = F.cross_entropy(scores, batch.targets[known], reduction="sum") / known.sum().clamp(min=1)
        return next_item, *self.contrast.embed([last(self.encoder(view), view) for view in batch.views])

    def loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self._with(self.contrast, *embeddings)

    def dense_loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self._with(getattr(self.contrast, "dense", None), *embeddings)

    def _with(self, contrast: Any, next_item: Tensor, *compared: Tensor) -> Tensor:
        return next_item + self.contrast.weight * contrast(*compared) if compared else next_item.clone()

    def measure(self, thorough: bool) -> dict[str, Any]:
        splits = {"valid": 2, "test": 1} if thorough else {"valid": 2}
        measures = {}
        for split, behind in splits.items():
            found = torch.cat([self._ranks(users, behind) for users in ranking.chunks(self.data.users)])
            measures |= {f"{split}_{key}": value for key, value in ranking.hits_and_gains(found).items()}
        items = pad((user[:-2] for user in self.data.users[:DESCRIBED]), self.args.length).to(self._device)
        views = [augment(items, self.encoder.mask_item) for _ in range(2)]
        return measures | viz.measure(torch.stack([last(self.encoder(view), view) for view in views]), bins=80)

    def _ranks(self, users: Sequence[Tensor], behind: int) -> Tensor:
        """Where the item ``behind`` places from the end is ranked by what came before it."""
        before = [user[:-behind] for user in users]
        items, seen = pad(before, self.args.length).to(self._device), pad(before).to(self._device)
        target = torch.stack([user[-behind] for user in users]).to(self._device)
        return ranking.ranks(self.encoder.scores(last(self.encoder(items), items)), target, seen)

    @property
    def _device(self) -> torch.device:
        return self.encoder.table.weight.device


def train(data: Sequences, args: argparse.Namespace, here: ranks.Ranks) -> dict[str, Any]:
    """Trains as the flags say; what was found."""
    torch.manual_seed(args.seed)
    return runs.train(Trainer(NextItem(data, args), args, here), args.contrast)


def table(summary: dict[str, Any]) -> str:
    """What was learnt, as text."""
    data = summary["data"]
    stages = {"popularity": summary["popularity"]}
    stages |= {contrast: trained["after"] for contrast, trained in summary["trainings"].items()}
    head = f"{data['name']}: {data['users']} users, {data['items']} items, {data['pairs']} pairs; "
    how = f"all items ranked but those seen; {runs.over_seeds(summary)}"
    return "\n".join([head + how, *runs.compare("test", MEASURES, stages)])


def show(data: Sequences, args: argparse.Namespace, found: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Prints and writes what all trainings found."""
    settings = ("temperature", "length", "dropout", "contrast_weight", "regularizer")
    summary = runs.summarise(found, args, settings, device)
    summary["popularity"] = {f"test_{key}": (value, 0.0) for key, value in ranking.popularity(data).items()}
    sizes = {"users": len(data.users), "items": data.items, "pairs": sum(map(len, data.users))}
    summary["data"] = {"name": data.name, **sizes}
    title = f"{data.name}: {len(data.users)} users, {data.items} items"
    curves = runs.curves(found, "valid_ndcg_10")
    ranking.draw_curves(curves, args.out / "curves.png", label="NDCG@10 on the validation items (%)", title=title)
    print(table(summary), runs.profiles(summary), "the profile's loss is the contrast", sep="\n")
    runs.write(summary, args.out)
    return summary


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(
        __doc__, out="runs/sequential_recommendation", batch_size=256, epochs=20, lr=3e-3, temperature=0.5
    )
    sequences.add_flags(parser)
    add = parser.add_argument_group("example").add_argument
    add("--contrast", nargs="+", choices=CONTRASTS, default=["mclrec"], help="what is trained beside the next item")
    add("--contrast-weight", type=float, help="beside the next-item loss; without it nt_xent's 0.1, mclrec's 0.01")
    add("--regularizer", type=float, default=0.1, help="mclrec's, within the contrast")
    add("--length", type=int, default=20, help="the last items of a sequence that the model sees")
    add("--dropout", type=float, default=0.2, help="in the Transformer")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    least = sequences.LEAST | {"seeds": 1, "length": 2}
    args = flags.parse(parser, argv, least=least, positive=("regularizer",))
    if args.contrast_weight is not None and not 0 < args.contrast_weight < math.inf:
        parser.error(f"--contrast-weight must be positive, got {args.contrast_weight}")
    if not 0 <= args.dropout < 1:
        parser.error(f"--dropout must be at least 0 and less than 1, got {args.dropout}")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        data = sequences.load(args)
        if here.first:
            print(data.dropped)
        found = [train(data, one, here) for one in runs.each(args, "contrast", args.contrast)]
        return show(data, args, found, here.device.type) if here.first else None


if __name__ == "__main__":
    main()
