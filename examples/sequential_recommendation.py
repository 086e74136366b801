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
import copy
import json
import math
from collections.abc import Sequence
from statistics import mean, pstdev
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import flags, ranks, step_profile
from common.logs import LOG
from common.sequences import data as sequences
from common.sequences import ranking
from common.sequences.data import Sequences, augment, pad
from common.sequences.encoder import DIM, Encoder, last
from common.tables import count, grid, spread
from common.trainer import Task, Trainer
from torch import Tensor, nn

import pycl
from pycl import objectives, viz
from pycl.bench.workloads import dense
from pycl.testing.objectives.mclrec import mclrec as dense_mclrec

DESCRIBED = 512  # users whose augmentations show the shape of the embedding
MEASURES = {f"{key}_{k}": f"{label}@{k} (%)" for label, key in (("HR", "hr"), ("NDCG", "ndcg")) for k in ranking.CUTS}


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


def train_one(data: Sequences, args: argparse.Namespace, here: ranks.Ranks) -> dict[str, Any]:
    """Trains with one contrast and one seed; the measures in its log, and its profile."""
    torch.manual_seed(args.seed)
    trainer = Trainer(NextItem(data, args), args, here)
    trainer.fit()
    found = {"profile": step_profile.profile(trainer)}
    if here.first:
        rows = viz.read(args.out / LOG)
        viz.dashboard(rows, args.out / "dashboard.png")
        found["rows"] = [row for row in rows if "valid_hr_10" in row]
    return found


def summarise(data: Sequences, args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What all runs found, as JSON: a pair (mean, standard deviation) for every measure of every contrast."""
    results: dict[str, Any] = {
        "popularity": {f"test_{k}": (value, 0.0) for k, value in ranking.popularity(data).items()}
    }
    for contrast, runs in found.items():
        ends = [run["rows"][-1] for run in runs]
        keys = [f"{split}_{key}" for split in ("valid", "test") for key in MEASURES]
        results[contrast] = {key: (mean(e[key] for e in ends), pstdev(e[key] for e in ends)) for key in keys}
    keys = ("batch_size", "epochs", "max_steps", "lr", "length", "dropout", "contrast_weight", "temperature", "amp")
    run = {key: getattr(args, key) for key in (*keys, "regularizer")}
    run |= {"seeds": list(range(args.seed, args.seed + args.seeds)), "torch": torch.__version__}
    sizes = {"users": len(data.users), "items": data.items, "pairs": sum(map(len, data.users))}
    profiles = {contrast: runs[0]["profile"] for contrast, runs in found.items()}
    return {"data": {"name": data.name, **sizes}, "run": run, "results": results, "profiles": profiles}


def table(summary: dict[str, Any]) -> str:
    """What was learnt, as text."""
    results, data, seeds = summary["results"], summary["data"], summary["run"]["seeds"]
    rows = [["test", *results]]
    for key, label in MEASURES.items():
        rows.append([label, *(spread(result[f"test_{key}"], 100, 2) for result in results.values())])
    head = f"{data['name']}: {data['users']} users, {data['items']} items, {data['pairs']} pairs; "
    how = f"all items ranked but those seen; mean ± standard deviation over {count(len(seeds), 'seed')}"
    return "\n".join([head + how, *grid(rows)])


def show(data: Sequences, args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Prints and writes what all runs found."""
    summary = summarise(data, args, found)
    curves = {
        contrast: [[(row["epoch"], 100 * row["valid_ndcg_10"]) for row in run["rows"]] for run in runs]
        for contrast, runs in found.items()
    }
    title = f"{data.name}: {len(data.users)} users, {data.items} items"
    ranking.draw_curves(curves, args.out / "curves.png", label="NDCG@10 on the validation items (%)", title=title)
    print(table(summary))
    for contrast, profile in summary["profiles"].items():
        print("", f"--contrast {contrast}; the loss is the contrast", step_profile.table(profile), sep="\n")
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nwritten to {args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")
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
    if len(set(args.contrast)) < len(args.contrast):
        parser.error(f"--contrast must name each contrast once, got {' '.join(args.contrast)}")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        data = sequences.load(args)
        if here.first:
            print(data.dropped)
        found: dict[str, list[dict[str, Any]]] = {contrast: [] for contrast in args.contrast}
        for contrast in args.contrast:
            for seed in range(args.seed, args.seed + args.seeds):
                one = copy.copy(args)
                one.contrast, one.seed, one.seeds = contrast, seed, 1
                if len(args.contrast) * args.seeds > 1:
                    one.out = args.out / f"{contrast}-seed-{seed}"
                found[contrast].append(train_one(data, one, here))
        return show(data, args, found) if here.first else None


if __name__ == "__main__":
    main()
