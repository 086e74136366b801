# SPDX-License-Identifier: Apache-2.0
"""Train three encoders on images, captions and edge maps of which instances lack some; retrieval between all of them.

    python examples/multimodal.py                             # scikit-learn's digits, a minute on a CPU
    python examples/multimodal.py --data-root DIR             # CIFAR-10 as torchvision stores it, or
                                                              # DIR/train/<class>/*.jpg
    torchrun --nproc_per_node=2 examples/multimodal.py ...    # gloo on CPUs, NCCL on GPUs

Every entry of the training split is missing with probability --missing. What is left is trained on as it is, and
compared with as many steps on the complete instances alone and with a training where nothing is missing. The images
are real; captions are made from their classes and measured attributes, edge maps from their pixels. Writes to --out:
the log of every step, a checkpoint from which --resume auto goes on, a dashboard, a table and a picture of it.
"""

from __future__ import annotations

import argparse
import math
from itertools import permutations
from typing import Any, NamedTuple

import kornia.augmentation as K
import kornia.color
import kornia.filters
import torch
from common import flags, ranks, runs
from common.images import data as images
from common.images import encoders
from common.images.data import Dataset
from common.pairs import modalities, retrieval, sheets
from common.pairs.captions import Captioned, TextTower, caption
from common.tables import count
from common.trainer import Task, Trainer
from torch import Tensor, nn

from pycl import viz
from pycl.functional import multimodal

NAMES = ("image", "caption", "edges")
WAYS = {f"{a}_to_{b}": f"{a} → {b}" for a, b in permutations(NAMES, 2)}
SHAPE_OF = 1024  # test instances whose embeddings show their shape
ARMS = {  # key: (label, whether entries are missing, whether instances that lack one are left out)
    "incomplete": ("what is there", True, False),
    "complete": ("complete instances only", True, True),
    "whole": ("nothing missing", False, False),
}


class Batch(NamedTuple):
    """For each modality the rows of the instances that have it, and who has it, bool ``[V, N]``."""

    rows: tuple[Tensor, ...]
    there: Tensor


class Tower(nn.Module):
    """An encoder of images and its projection."""

    def __init__(self, data: Dataset, name: str) -> None:
        super().__init__()
        self.image = encoders.make(name, data)
        self.project = nn.Linear(self.image.width, encoders.DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(encoders.encode(self.image, x))


class Towers(nn.ModuleDict):
    """An encoder for each modality, to one space."""

    def __init__(self, data: Dataset, captioned: Captioned, encoder: str) -> None:
        longest = max(split.tokens.shape[-1] for split in (captioned.train, captioned.test))
        grey = data._replace(train=data.train._replace(images=data.train.images[:1, :1]))
        text = TextTower(len(captioned.words), longest)
        super().__init__({"image": Tower(data, encoder), "caption": text, "edges": Tower(grey, encoder)})

    def forward(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self[name](x) for name, x in zip(NAMES, rows, strict=True))


def edges(x: Tensor) -> Tensor:
    """How fast brightness changes at each pixel, ``[N, 1, H, W]``."""
    return kornia.filters.sobel(x if x.shape[1] == 1 else kornia.color.rgb_to_grayscale(x))


class Modalities(Task):
    """What an instance has of image, caption and edges is close; what two instances have is not."""

    def __init__(self, data: Dataset, captioned: Captioned, args: argparse.Namespace) -> None:
        super().__init__()
        self.data, self.captioned, self.args = data, captioned, args
        self.instances, there = chosen(len(data.train.labels), args)
        self.there, self.size = there.to(data.train.labels.device), len(self.instances)
        self.encoder = Towers(data, captioned, args.encoder)
        # captions tell colours, sides and directions: a view may be shifted, not mirrored or recoloured
        shift = max(1, data.side // 16)
        self.augment = K.RandomCrop((data.side, data.side), padding=shift, padding_mode="reflect")

    def batch(self, rows: Tensor) -> Batch:
        rows = self.instances.to(rows.device)[rows]
        there = self.there[:, rows]
        for name, has in zip(NAMES, there, strict=True):
            if not has.any():
                raise flags.Refused(f"--missing {self.args.missing}: a batch has no {name}; take a larger --batch-size")
        pictured, told, outlined = (rows[has] for has in there)
        x, y = (self.augment(self.data.train.images[some].float().div(255)) for some in (pictured, outlined))
        tokens = self.captioned.train.tokens
        sentence = torch.randint(tokens.shape[1], told.shape, device=rows.device)
        return Batch((x, tokens[told, sentence], edges(y)), there)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        return self.encoder(batch.rows)

    def loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        named, present = (dict(zip(NAMES, x, strict=True)) for x in (embeddings, batch.there))
        options = {"form": self.args.form, "temperature": self.args.temperature}
        return multimodal(named, present, **options, group="world")

    def dense_loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return modalities.dense(embeddings, batch.there, self.args.form, self.args.temperature)

    def measure(self, thorough: bool) -> dict[str, Any]:
        captions, x = self.captioned.test, self.data.test.images
        found = {
            "image": retrieval.embed(lambda part: self.encoder["image"](part.float().div(255)), x),
            "caption": retrieval.embed(self.encoder["caption"], captions.tokens[:, 0]),
            "edges": retrieval.embed(lambda part: self.encoder["edges"](edges(part.float().div(255))), x),
        }
        own, row = torch.arange(len(x), device=x.device), {}
        for a, b in permutations(NAMES, 2):
            # captions that say the same are one; an image and its edges are of one instance alone
            ids = captions.ids if "caption" in (a, b) else own
            nearest = retrieval.nearest(found[a], found[b], min(retrieval.AT[-1], len(x)))
            row |= {f"{a}_to_{b}_{k}": share for k, share in retrieval.recall(nearest, ids, ids).items()}
        return row | viz.measure(torch.stack([found[name][:SHAPE_OF] for name in NAMES]))


def chosen(instances: int, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The instances to train on, and who of all has what, bool ``[V, N]``. Who lacks what is the same for all arms."""
    _, lack, leave_out = ARMS[args.arm]
    there = modalities.lacking(len(NAMES), instances, args.missing if lack else 0.0, args.seed)
    kept = there.all(0) if leave_out else there.any(0)
    return kept.nonzero().squeeze(1), there


def as_many_steps(args: argparse.Namespace, instances: int) -> argparse.Namespace:
    """The flags with as many steps as passes over all instances would take, for an arm that has fewer of them."""
    kept = len(chosen(instances, args)[0])
    batch, epoch = (n // min(args.batch_size, n) for n in (instances, max(kept, 1)))
    steps = args.epochs * batch
    args.max_steps = min(steps, args.max_steps or steps)
    args.evaluate_every = math.ceil(args.evaluate_every * batch / epoch)
    args.epochs = math.ceil(steps / epoch)
    return args


def train(data: Dataset, captioned: Captioned, args: argparse.Namespace, here: ranks.Ranks) -> dict[str, Any]:
    """Trains as the flags say; what was found."""
    torch.manual_seed(args.seed)
    task = Modalities(data, captioned, as_many_steps(args, len(data.train.labels)))
    return runs.train(Trainer(task, args, here), args.arm) | {"instances": task.size}


def tables(summary: dict[str, Any]) -> str:
    """What was learnt, as text."""
    data = summary["data"]
    shown = [runs.over_seeds(summary)]
    for k in retrieval.AT:
        shown += runs.table(summary, f"recall at {k} (%)", {f"{way}_r{k}": title for way, title in WAYS.items()})
    shown += [f"{arm}: {ARMS[arm][0]}, {count(n, 'instance')}" for arm, n in summary["instances"].items()]
    name = f"{data['name']}: {data['train']} training and {data['test']} test instances; of the training's entries "
    return "\n".join([f"{name}{100 * data['missing']:g} % are missing, of the test's none", *shown])


def show(data: Dataset, args: argparse.Namespace, found: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Prints and writes what all trainings found."""
    summary = runs.summarise(found, args, ("temperature", "form", "missing"), device)
    summary["data"] = data.counts | {"missing": args.missing}
    summary["instances"] = {one["name"]: one["instances"] for one in found}
    print(tables(summary), runs.profiles(summary), sep="\n")
    bars = {
        ARMS[arm][0]: [stages["after"][f"{way}_r10"] for way in WAYS] for arm, stages in summary["trainings"].items()
    }
    sheets.draw_bars(list(WAYS.values()), bars, args.out / "recall.png", title="recall at 10 (%), test split")
    runs.write(summary, args.out)
    return summary


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(__doc__, out="runs/multimodal", batch_size=256, epochs=30, lr=3e-3, temperature=0.1)
    images.add_flags(parser)
    add = parser.add_argument_group("example").add_argument
    add("--arm", choices=ARMS, nargs="+", default=list(ARMS), help="what is trained on, one after the other")
    add("--missing", type=float, default=0.3, help="the share of each modality's entries that is missing")
    add("--form", choices=modalities.FORMS, default="mv_dhel", help="the loss over what is there")
    add("--encoder", choices=sorted(encoders.ENCODERS), default="small", help="the network for images and edges")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    args = flags.parse(parser, argv, least=images.LEAST | {"seeds": 1})
    if not 0 <= args.missing < 1:
        parser.error(f"--missing must be at least 0 and below 1, got {args.missing}")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        data = images.load(args)
        captioned = caption(data).to(here.device)
        data = data.to(here.device)
        found = [train(data, captioned, one, here) for one in runs.each(args, "arm", args.arm)]
        return show(data, args, found, here.device.type) if here.first else None


if __name__ == "__main__":
    main()
