# SPDX-License-Identifier: Apache-2.0
"""Learn image features without labels: MV-DHEL on four augmented views, on the CPU, in a few minutes.

    python examples/multiview.py                          # scikit-learn's digits
    python examples/multiview.py --data-root DIR          # DIR/train/<class>/*.jpg, e.g. CIFAR-10 as an image folder

Prints a table and writes it with two pictures to ``demo-out``: the features before and after training, over several
seeds, and what the loss costs beside dense eager PyTorch. One seed and one number of threads give one result, bit
for bit.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from statistics import mean, pstdev
from typing import Any

import loss_cost
import report
import torch
import training
from data import Augmentation, Dataset, pick
from torch import Generator, Tensor, nn
from training import DIM, Batches, Model, Optimizer, encode, settle_batch_norm

from pycl import metrics
from pycl.backends import registry

COST_SIZES = (256, 512, 1024, 2048, 4096)
FEW_LABELS, FEW_LABELS_DRAWS = 10, 5
MOST_PIXELS = 1024  # a linear probe on more raw pixels than this takes longer than the training


@dataclass
class Trained:
    """What one seed gives: measures and similarity histograms before and after, and the loss at the end."""

    measures: dict[str, dict[str, float]]
    histograms: dict[str, tuple[Tensor, Tensor, Tensor]]
    loss: float
    seconds: float


def train_one_seed(data: Dataset, args: argparse.Namespace, seed: int) -> Trained:
    """Initialise, measure, train, measure again."""
    torch.manual_seed(seed)
    model = Model(data.train.images.shape[1], data.train.images.shape[-1])
    stages = {"before": measure(model, data, seed)}
    start = time.perf_counter()
    loss = fit(model, data, args, seed)
    seconds = time.perf_counter() - start
    stages["after"] = measure(model, data, seed)
    measures, histograms = ({name: stage[i] for name, stage in stages.items()} for i in (0, 1))
    return Trained(measures, histograms, loss, seconds)


def fit(model: Model, data: Dataset, args: argparse.Namespace, seed: int) -> float:
    """Trains the model in place; returns the last loss."""
    loss_of = loss_cost.make_loss(args.loss, "pycl", args.temperature)
    batches = Batches(data.train.images, args, seed)
    optimizer = Optimizer(model.parameters(), args.lr, batches.steps)
    model.train()
    for images in batches:
        embeddings = model(make_views(images, data.augment, args.views, batches.generator))
        loss = loss_of(embeddings.unflatten(0, (args.views, -1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        batches.note(loss.item())
    return batches.losses[-1]


def make_views(images: Tensor, augment: Augmentation, views: int, generator: Generator) -> Tensor:
    """Every image ``views`` times, each time augmented anew; views-major, ``[views * N, C, H, W]``."""
    return augment(images.repeat(views, 1, 1, 1), generator)


@torch.no_grad()
def measure(model: Model, data: Dataset, seed: int) -> tuple[dict[str, float], tuple[Tensor, Tensor, Tensor]]:
    """Accuracies of the encoder's features; effective rank, alignment, uniformity and histograms of the embedding."""
    settle_batch_norm(model, data.train.images)
    train, test = (encode(model, split.images) for split in (data.train, data.test))
    generator = Generator().manual_seed(seed)  # the same views before and after
    some = data.test.images[:1024]
    views = make_views(some, data.augment, 4, generator)
    embeddings = torch.cat([model(part) for part in views.split(512)])
    x, y, *_ = embeddings.chunk(4)
    measures = accuracies(data, train, test, seed) | {
        "effective_rank": metrics.effective_rank(nn.functional.normalize(model(some))),
        "alignment": metrics.alignment(x, y),
        "uniformity": metrics.uniformity(x),
    }
    return measures, metrics.similarity_histogram(embeddings, bins=80, ids=torch.arange(len(some)).repeat(4))


def accuracies(data: Dataset, train: Tensor, test: Tensor, seed: int) -> dict[str, float]:
    """How well a kNN vote and linear probes tell the classes from these features."""
    generator = Generator().manual_seed(seed)
    labelled = data.train._replace(images=train)
    few = [pick(labelled, FEW_LABELS, generator) for _ in range(FEW_LABELS_DRAWS)]
    result = {
        "knn": metrics.knn_accuracy(train, data.train.labels, test, data.test.labels),
        "few_labels": mean(metrics.linear_probe_accuracy(*draw, test, data.test.labels) for draw in few),
    }
    if train.shape[1] <= MOST_PIXELS:
        result["linear"] = metrics.linear_probe_accuracy(train, data.train.labels, test, data.test.labels)
    return result


def summarise(data: Dataset, args: argparse.Namespace, seeds: list[Trained], cost: list[loss_cost.Cost]) -> dict:
    """Everything the demo found, as JSON: a pair (mean, standard deviation) over the seeds for every measure."""
    pixels = [s.images.flatten(1) for s in (data.train, data.test)]
    raw = accuracies(data, *pixels, args.seed)
    stages: dict[str, Any] = {"pixels": {key: (value, 0.0) for key, value in raw.items()}}
    for stage in ("before", "after"):
        rows = [seed.measures[stage] for seed in seeds]
        stages[stage] = {key: (mean(r[key] for r in rows), pstdev(r[key] for r in rows)) for key in rows[0]}
    sizes = {"train": len(data.train.labels), "test": len(data.test.labels), "classes": len(data.classes)}
    run = {key: getattr(args, key) for key in ("loss", "views", "batch_size", "epochs", "max_steps", "lr")}
    run |= {"temperature": args.temperature, "seeds": list(range(args.seed, args.seed + args.seeds)), "dim": DIM}
    run |= {"train_seconds": mean(seed.seconds for seed in seeds), "threads": torch.get_num_threads()}
    run |= {"backend": registry.choose(None, "cpu"), "torch": torch.__version__, "losses": [s.loss for s in seeds]}
    by_seed = [seed.measures for seed in seeds]
    return {
        "data": {"name": data.name, **sizes},
        "run": run,
        "stages": stages,
        "by_seed": by_seed,
        "loss_cost": [row._asdict() for row in cost],
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = training.make_parser(__doc__, batch_size=256, epochs=16, lr=3e-3, temperature=0.5)
    add = parser.add_argument
    add("--loss", choices=sorted(loss_cost.PYCL), default="mv_dhel")
    add("--views", type=int, default=4)
    add("--seeds", type=int, default=3, help="how many seeds")
    add("--seed", type=int, default=0, help="the first of them")
    return training.parse(parser, argv, least={"views": 2, "seeds": 1})


def main(argv: list[str] | None = None) -> dict:
    """Runs the demo and returns its summary."""
    args = parse(argv)
    data = training.start(args)
    seeds = [train_one_seed(data, args, seed) for seed in range(args.seed, args.seed + args.seeds)]
    # a run cut short is a trial: small batches will do
    sizes, seconds = (COST_SIZES, 1.5) if args.max_steps is None else (COST_SIZES[:2], 0.2)
    setting = {"views": args.views, "dim": DIM, "temperature": args.temperature}
    cost = loss_cost.measure(args.loss, sizes, **setting, seconds=seconds)
    summary = summarise(data, args, seeds, cost)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    titles = {"before": "before training", "after": "after training"}
    shown = {title: seeds[0].histograms[stage] for stage, title in titles.items()}
    report.draw_similarities(shown, args.out / "similarity.png")
    threads = report.count(torch.get_num_threads(), "thread")
    title = f"{args.loss}: one step forward and backward, {args.views} views, {DIM} features, {threads}"
    report.draw_costs(cost, args.out / "loss_cost.png", title=title)
    print(report.table(summary))
    print(f"\nwritten to {args.out}: summary.json, similarity.png, loss_cost.png")
    return summary


if __name__ == "__main__":
    main()
