# SPDX-License-Identifier: Apache-2.0
"""Train an image and a text encoder on pairs: CLIP, SigLIP, hard negatives, VSE++ and DBL; recall at 1, 5 and 10.

    python examples/image_text.py                                       # scikit-learn's digits, a minute on a CPU
    python examples/image_text.py --data-root DIR --loss clip siglip    # CIFAR-10 as torchvision stores it, or
                                                                        # DIR/train/<class>/*.jpg
    torchrun --nproc_per_node=2 examples/image_text.py ...              # gloo on CPUs, NCCL on GPUs

The images are real; the captions are made from their class names and from attributes measured on their pixels. Writes
to --out: the log of every step, a checkpoint from which --resume auto goes on, a dashboard, and a sheet of captions
with the images they find.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from common import flags, ranks, runs
from common.images import data as images
from common.images import encoders
from common.images.data import Dataset
from common.pairs import retrieval, sheets
from common.pairs.captions import Captioned, TextTower, caption
from common.pairs.losses import LOSSES
from common.trainer import Task, Trainer
from torch import Tensor, nn

from pycl import viz

SHAPE_OF = 1024  # test pairs whose embeddings show their shape
ROWS = 6  # of the sheet
WAYS = {"image_to_text": "image → caption", "text_to_image": "caption → image"}


class Batch(NamedTuple):
    """Images in [0, 1] with a caption each, and the caption with a wrong fact."""

    images: Tensor
    tokens: Tensor
    wrong: Tensor


class Towers(nn.Module):
    """An encoder of images and one of captions, to unit vectors of one space."""

    def __init__(self, data: Dataset, captioned: Captioned, encoder: str) -> None:
        super().__init__()
        self.image = encoders.make(encoder, data)
        self.project = nn.Linear(self.image.width, encoders.DIM)
        longest = max(split.tokens.shape[-1] for split in (captioned.train, captioned.test))
        self.text = TextTower(len(captioned.words), longest)

    def of_images(self, x: Tensor) -> Tensor:
        return F.normalize(self.project(encoders.encode(self.image, x)), dim=1)

    def of_texts(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.text(tokens), dim=1)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.of_images(x), self.of_texts(tokens)


class ImageText(Task):
    """An image and its caption are close, an image and the caption of another one are not."""

    def __init__(self, data: Dataset, captioned: Captioned, args: argparse.Namespace) -> None:
        super().__init__()
        self.data, self.captioned, self.args, self.size = data, captioned, args, len(data.train.labels)
        self.encoder = Towers(data, captioned, args.encoder)
        self.anchor = Towers(data, captioned, args.encoder) if args.loss == "dbl" else None
        self.criterion = LOSSES[args.loss](args)
        # captions tell colours, sides and directions: a view may be shifted, not mirrored or recoloured
        shift = max(1, data.side // 16)
        self.augment = K.RandomCrop((data.side, data.side), padding=shift, padding_mode="reflect")

    def before_step(self, step: int) -> None:
        self.criterion.clamp()

    def batch(self, rows: Tensor) -> Batch:
        captions = self.captioned.train
        sentence = torch.randint(captions.tokens.shape[1], rows.shape, device=rows.device)
        x = self.augment(self.data.train.images[rows].float().div(255))
        return Batch(x, captions.tokens[rows, sentence], captions.wrong[rows, sentence])

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        if self.args.loss == "wrong_captions":
            image, texts = self.encoder(batch.images, torch.cat([batch.tokens, batch.wrong]))
            return image, *texts.chunk(2)
        anchor = () if self.anchor is None else self.anchor(batch.images, batch.tokens)
        return *self.encoder(batch.images, batch.tokens), *anchor

    def loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self.criterion(*embeddings)

    def dense_loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self.criterion.dense(*embeddings)

    def test_pairs(self) -> tuple[Tensor, Tensor]:
        """The embeddings of the test images and of a caption of each."""
        image = retrieval.embed(lambda x: self.encoder.of_images(x.float().div(255)), self.data.test.images)
        return image, retrieval.embed(self.encoder.of_texts, self.captioned.test.tokens[:, 0])

    def measure(self, thorough: bool) -> dict[str, Any]:
        image, text = self.test_pairs()
        captions, row = self.captioned.test, {}
        for way, (x, y) in zip(WAYS, ((image, text), (text, image)), strict=True):
            found = retrieval.nearest(x, y, min(retrieval.AT[-1], len(y)))
            row |= {f"{way}_{k}": share for k, share in retrieval.recall(found, captions.ids, captions.ids).items()}
            if way == "image_to_text":
                right = (captions.facts[found[:, 0]] == captions.facts).double().mean(0).tolist()
                row |= {f"right_{fact.name}": share for fact, share in zip(self.captioned.told, right, strict=True)}
        wrong = retrieval.embed(self.encoder.of_texts, captions.wrong[:, 0])
        row["right_of_two"] = ((image * text).sum(1) > (image * wrong).sum(1)).double().mean().item()
        return row | viz.measure(torch.stack([image[:SHAPE_OF], text[:SHAPE_OF]]))


def train(data: Dataset, captioned: Captioned, args: argparse.Namespace, here: ranks.Ranks) -> dict[str, Any]:
    """Trains as the flags say; what was found."""
    torch.manual_seed(args.seed)
    task = ImageText(data, captioned, args)
    found = runs.train(Trainer(task, args, here), args.loss)
    if here.first:
        draw_sheet(task.eval(), args)
    return found


@torch.no_grad()
def draw_sheet(task: ImageText, args: argparse.Namespace) -> None:
    """The captions of the first test image of some classes, with the images they find."""
    image, text = task.test_pairs()
    captions, pictures = task.captioned.test, task.data.test.images
    chosen = sheets.first_of_each(task.data.test.labels, ROWS)
    found = retrieval.nearest(text[chosen], image, min(sheets.FOUND, len(image)))
    right = captions.ids[found] == captions.ids[chosen].unsqueeze(1)
    title = f"{args.loss}: captions of the test split and the nearest of {len(image)} images; framed: the same facts"
    texts = [captions.texts[row] for row in chosen.tolist()]
    sheets.draw_search(texts, pictures[found], right, args.out / "sheet.png", title=title)


def tables(summary: dict[str, Any]) -> str:
    """What was learnt, as text."""
    data = summary["data"]
    keys = next(iter(summary["trainings"].values()))["after"]
    shown = []
    for way, title in WAYS.items():
        columns = {key: f"at {key.rpartition('r')[2]}" for key in keys if key.startswith(way)}
        shown += runs.table(summary, f"{title}, recall (%)", columns)
    columns = {key: key.removeprefix("right_").replace("_", " ") for key in keys if key.startswith("right_")}
    shown += runs.table(summary, "right in the first caption (%)", columns)
    shown.append("of two: the own caption is nearer than the same one with a wrong fact")
    name = (
        f"{data['name']}: {data['train']} training and {data['test']} test images, captions made of their classes and "
    )
    what = f"measured attributes; {data['different']} test captions say different things, and a hit says the same"
    return "\n".join([name + what, runs.over_seeds(summary), *shown])


def show(
    data: Dataset, captioned: Captioned, args: argparse.Namespace, found: list[dict[str, Any]], device: str
) -> dict[str, Any]:
    """Prints and writes what all trainings found."""
    summary = runs.summarise(found, args, ("temperature", "margin", "beta"), device)
    summary["data"] = data.counts | {"words": len(captioned.words), "different": len(captioned.test.ids.unique())}
    print(tables(summary), runs.profiles(summary), sep="\n")
    runs.write(summary, args.out)
    return summary


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(__doc__, out="runs/image_text", batch_size=256, epochs=30, lr=3e-3, temperature=0.1)
    images.add_flags(parser)
    add = parser.add_argument_group("example").add_argument
    add("--loss", choices=LOSSES, nargs="+", default=["clip", "siglip"], help="what is trained, one after the other")
    add("--encoder", choices=sorted(encoders.ENCODERS), default="small", help="the network for images")
    add("--margin", type=float, default=0.2, help="of vse++ and dbl")
    add("--beta", type=float, default=0.5, help="how much more similar negatives weigh, of hard_negatives")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    args = flags.parse(parser, argv, least=images.LEAST | {"seeds": 1}, positive=["margin"])
    if not 0 <= args.beta < math.inf:
        parser.error(f"--beta must not be negative, got {args.beta}")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        if "dbl" in args.loss and here.size > 1:
            raise flags.Refused("--loss dbl runs on one rank: pycl.objectives.dbl takes no group")
        data = images.load(args)
        captioned = caption(data).to(here.device)
        data = data.to(here.device)
        found = [train(data, captioned, one, here) for one in runs.each(args, "loss", args.loss)]
        return show(data, captioned, args, found, here.device.type) if here.first else None


if __name__ == "__main__":
    main()
