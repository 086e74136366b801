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
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import loss_cost
import report
import torch
from data import Augmentation, Dataset, load, pick
from torch import Generator, Tensor, nn
from tqdm import tqdm

from pycl import backends, metrics

WIDTHS = (32, 64, 128)
DIM = 128  # features of the embedding that the loss sees
COST_SIZES = (256, 512, 1024, 2048, 4096)
FEW_LABELS, FEW_LABELS_DRAWS = 10, 5
MOST_PIXELS = 1024  # a linear probe on more raw pixels than this takes longer than the training


class Model(nn.Module):
    """A convolutional encoder, whose features are kept, and a projector that only the loss sees."""

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        stride = max(1, image_size // 16)  # the first layer always ends at 16x16, whatever the images
        layers: list[nn.Module] = []
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, stride + 2, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels, stride = width, 2
        self.encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projector = nn.Sequential(
            nn.Linear(WIDTHS[-1], 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, DIM)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.projector(self.encoder(images.contiguous(memory_format=torch.channels_last)))


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
    generator = Generator().manual_seed(seed)
    images = data.train.images
    batch = min(args.batch_size, len(images))
    epoch = len(images) // batch
    steps = min(args.epochs * epoch, args.max_steps or math.inf)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 1e-3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, steps))
    value = math.nan
    model.train()
    with tqdm(total=steps, desc=f"seed {seed}", unit="step", disable=args.quiet) as bar:
        start = time.perf_counter()
        for step in range(steps):
            if step % epoch == 0:
                order = torch.randperm(len(images), generator=generator)
            rows = order[step % epoch * batch :][:batch]
            embeddings = model(make_views(images[rows], data.augment, args.views, generator))
            loss = loss_of(embeddings.unflatten(0, (args.views, batch)))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if not math.isfinite(value := loss.item()):
                raise FloatingPointError(f"the loss is {value} at step {step}; try a smaller --lr")
            rate = (step + 1) * batch / (time.perf_counter() - start)
            bar.set_postfix_str(f"loss {value:.3f}, {rate:.0f} img/s", refresh=False)
            bar.update()
    return value


def warm_up_then_cosine(step: int, steps: int) -> float:
    """The learning rate's factor: up in a line over the first tenth, down in half a cosine."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def make_views(images: Tensor, augment: Augmentation, views: int, generator: Generator) -> Tensor:
    """Every image ``views`` times, each time augmented anew; views-major, ``[views * N, C, H, W]``."""
    return augment(images.repeat(views, 1, 1, 1), generator)


@torch.no_grad()
def measure(model: Model, data: Dataset, seed: int) -> tuple[dict[str, float], tuple[Tensor, Tensor, Tensor]]:
    """Accuracies of the encoder's features; effective rank, alignment, uniformity and histograms of the embedding."""
    settle_batch_norm(model, data.train.images)
    train, test = (torch.cat([model.encoder(part) for part in s.images.split(512)]) for s in (data.train, data.test))
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


def settle_batch_norm(model: Model, images: Tensor) -> None:
    """Sets the running statistics to those of the plain images: an untrained model has none worth using."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    model.train()
    for part in images[: len(images) // 256 * 256 or None].split(256):
        model(part)
    model.eval()
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


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
    run |= {"backend": backends.choose(None, "cpu"), "torch": torch.__version__, "losses": [s.loss for s in seeds]}
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--data-root", type=Path, help="image folder with train/<class>/*.jpg or *.png, and test/<class>/ if there is")
    add("--loss", choices=sorted(loss_cost.PYCL), default="mv_dhel")
    add("--views", type=int, default=4)
    add("--batch-size", type=int, default=256, help="images in a batch; the network sees views times as many")
    add("--epochs", type=int, default=16)
    add("--lr", type=float, default=3e-3)
    add("--temperature", type=float, default=0.5)
    add("--seeds", type=int, default=3, help="how many seeds")
    add("--seed", type=int, default=0, help="the first of them")
    add("--image-size", type=int, default=32, help="side that the images of --data-root are resized to")
    add("--out", type=Path, default=Path("demo-out"))
    add(
        "--max-steps",
        type=int,
        help="stop every seed after so many steps; also measures the loss on small batches only",
    )
    add("--limit", type=int, help="at most so many training and so many test images")
    add("--threads", type=int, help="threads for torch; as many as it likes by default")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    least = {"views": 2, "batch_size": 2, "epochs": 1, "seeds": 1, "image_size": 8, "max_steps": 1, "limit": 2}
    for name, low in (least | {"threads": 1}).items():
        if (value := getattr(args, name)) is not None and value < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    for name in ("lr", "temperature"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} must be positive, got {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> dict:
    """Runs the demo and returns its summary."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        data = load(args.data_root, image_size=args.image_size, limit=args.limit)
    except (OSError, ValueError) as error:
        sys.exit(f"multiview.py: {error}")
    seeds = [train_one_seed(data, args, seed) for seed in range(args.seed, args.seed + args.seeds)]
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
