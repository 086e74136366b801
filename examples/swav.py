# SPDX-License-Identifier: Apache-2.0
"""Cluster images without labels while learning their features: SwAV with several crops, on the CPU, in a minute or two.

    python examples/swav.py                          # scikit-learn's digits
    python examples/swav.py --data-root DIR          # DIR/train/<class>/*.jpg, e.g. CIFAR-10 as an image folder

Prints how the training went and writes it with a picture to ``demo-out``: the loss, the accuracy of a kNN vote on the
features, how the prototypes are used, and the images that belong to some of them. One seed and one number of threads
give one result, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from statistics import mean
from typing import NamedTuple

import report
import torch
import training
from data import Dataset
from torch import Generator, Tensor
from torch.nn.functional import normalize
from training import DIM, Batches, Model, Optimizer, encode, settle_batch_norm

import pycl
from pycl import metrics
from pycl.backends import registry

LARGE_CROPS = 2  # the crops that have codes
SHOWN_PROTOTYPES, SHOWN_IMAGES = 12, 8


class Row(NamedTuple):
    """What is known after an epoch; ``loss`` is the mean over the steps since the row before."""

    epoch: int
    loss: float | None
    knn: float
    codes: metrics.Assignments
    predictions: metrics.Assignments


def train(
    model: Model, prototypes: pycl.Prototypes, data: Dataset, args: argparse.Namespace
) -> tuple[list[Row], list[float]]:
    """Trains both in place; returns about ``--rows`` rows of the table, and the loss of every step."""
    setting = {"temperature": args.temperature, "epsilon": args.epsilon, "code_crops": range(LARGE_CROPS)}
    early = pycl.SwAVLoss(**setting)
    late = pycl.SwAVLoss(**setting, queue_size=args.queue_size, dim=DIM)
    batches = Batches(data.train.images, args, args.seed)
    optimizer = Optimizer([*model.parameters(), *prototypes.parameters()], args.lr, batches.steps)
    every = max(1, math.ceil(batches.steps / batches.epoch / args.rows)) * batches.epoch
    rows = [Row(0, None, *measure(model, prototypes, data, args))]
    for step, images in enumerate(batches, start=1):
        model.train()
        prototypes.normalize_()
        crops = make_crops(images, data, args.small_crops, batches.generator)
        z = normalize(model(*crops), dim=1).unflatten(0, (-1, len(images)))
        swav = early if step <= args.queue_after * batches.epoch else late
        loss = swav(z, prototypes)
        optimizer.zero_grad()
        loss.backward()
        if step <= args.frozen_steps:
            prototypes.skip_update()
        optimizer.step()
        batches.note(loss.item())
        if step % every == 0 or step == batches.steps:
            prototypes.normalize_()
            recent = mean(batches.losses[(step - 1) // every * every :])
            rows.append(Row(math.ceil(step / batches.epoch), recent, *measure(model, prototypes, data, args)))
    return rows, batches.losses


def make_crops(images: Tensor, data: Dataset, n_small: int, generator: Generator) -> list[Tensor]:
    """The large crops of all images, crop by crop, and then the small ones."""
    crops = [data.augment(images.repeat(LARGE_CROPS, 1, 1, 1), generator)]
    if n_small:
        crops.append(data.crop_small(images.repeat(n_small, 1, 1, 1), generator))
    return crops


@torch.no_grad()
def measure(
    model: Model, prototypes: pycl.Prototypes, data: Dataset, args: argparse.Namespace
) -> tuple[float, metrics.Assignments, metrics.Assignments]:
    """The kNN accuracy of the encoder's features, and how the training images are assigned."""
    settle_batch_norm(model, data.train.images)
    bank, queries = (encode(model, split.images) for split in (data.train, data.test))
    knn = metrics.knn_accuracy(bank, data.train.labels, queries, data.test.labels)
    codes, predictions = assign(model, prototypes, bank, args)
    return knn, metrics.assignments(codes), metrics.assignments(predictions)


@torch.no_grad()
def assign(
    model: Model, prototypes: pycl.Prototypes, features: Tensor, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Codes of the images, assigned all together, and what the network predicts for each by itself."""
    scores = prototypes(normalize(model.projector(features), dim=1))
    return pycl.functional.sinkhorn(scores, epsilon=args.epsilon), (scores / args.temperature).softmax(1)


def summarise(rows: list[Row], losses: list[float], seconds: float, data: Dataset, args: argparse.Namespace) -> dict:
    """Everything the example found, as JSON."""
    settings = {key: value for key, value in vars(args).items() if key not in ("data_root", "out", "quiet", "rows")}
    run = {"seconds": seconds, "threads": torch.get_num_threads(), "backend": registry.choose(None, "cpu")}
    table = [row._asdict() | {key: getattr(row, key)._asdict() for key in ("codes", "predictions")} for row in rows]
    sizes = {"train": len(data.train.labels), "test": len(data.test.labels), "classes": len(data.classes)}
    return {"data": {"name": data.name, **sizes}, "run": settings | run, "rows": table, "losses": losses}


def strongest(codes: Tensor, use: Tensor, images: Tensor) -> Tensor:
    """The images assigned most strongly to each of some prototypes, from the most to the least used."""
    order = use.argsort(descending=True)
    some = order[torch.linspace(0, len(order) - 1, min(SHOWN_PROTOTYPES, len(order))).long()]
    return images[codes[:, some].topk(min(SHOWN_IMAGES, len(images)), dim=0).indices.T]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = training.make_parser(__doc__, batch_size=64, epochs=20, lr=1e-3, temperature=0.1)
    add = parser.add_argument
    add("--epsilon", type=float, default=0.03, help="entropy of the codes; smaller is sharper")
    add("--prototypes", type=int, default=100, help="how many")
    add("--small-crops", type=int, default=4, help="for each image, beside two large ones")
    add("--queue-size", type=int, default=128, help="earlier features that join the assignment; 0 for none")
    add("--queue-after", type=int, help="epochs without the queue: at first features change too fast; half by default")
    add("--frozen-steps", type=int, default=20, help="first steps that leave the prototypes as they were drawn")
    add("--rows", type=int, default=10, help="of the table; every row costs a pass over the images")
    add("--seed", type=int, default=0)
    least = {"prototypes": 2, "small_crops": 0, "queue_size": 0, "queue_after": 0, "frozen_steps": 0, "rows": 1}
    args = training.parse(parser, argv, least=least, positive=["epsilon"])
    if args.queue_after is None:
        args.queue_after = args.epochs // 2
    return args


def main(argv: list[str] | None = None) -> dict:
    """Runs the example and returns its summary."""
    args = parse(argv)
    data = training.start(args)
    torch.manual_seed(args.seed)
    model = Model(data.train.images.shape[1], data.train.images.shape[-1])
    prototypes = pycl.Prototypes(DIM, args.prototypes)
    start = time.perf_counter()
    rows, losses = train(model, prototypes, data, args)
    summary = summarise(rows, losses, time.perf_counter() - start, data, args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "swav.json").write_text(json.dumps(summary, indent=2) + "\n")
    codes, predictions = assign(model, prototypes, encode(model, data.train.images), args)
    use = {"codes": codes.mean(0), "predictions": predictions.mean(0)}
    members = strongest(codes, use["predictions"], data.train.images)
    report.draw_clusters(summary, use, members, args.out / "swav.png")
    print(report.clusters(summary))
    print(f"\nwritten to {args.out}: swav.json, swav.png")
    return summary


if __name__ == "__main__":
    main()
