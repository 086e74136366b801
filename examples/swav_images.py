# SPDX-License-Identifier: Apache-2.0
"""Cluster images without labels while learning their features: SwAV with several crops.

    python examples/swav_images.py                       # scikit-learn's digits, two minutes on a CPU
    python examples/swav_images.py --data-root DIR       # CIFAR-10 as torchvision stores it, or DIR/train/<class>/*.jpg
    torchrun --nproc_per_node=2 examples/swav_images.py ...

Prints how the training went and writes it to --out with a picture: the loss, the accuracy of a kNN vote on the
features, how the prototypes are used, and the images that belong to some of them. One seed and one thread give one
result, bit for bit.
"""

from __future__ import annotations

import argparse
import math
from statistics import mean
from typing import Any

import torch
from common import flags, ranks, runs, step_profile
from common.images import data as images
from common.images import encoders, evaluate, pictures
from common.images.augment import Augment
from common.images.data import Dataset
from common.logs import LOG
from common.tables import count, grid
from common.trainer import Task, Trainer
from torch import Tensor
from torch.nn.functional import normalize

import pycl
from pycl import metrics, viz
from pycl.bench.workloads.sinkhorn import dense_swav

LARGE_CROPS = 2  # the crops that have codes
SHOWN_PROTOTYPES, SHOWN_IMAGES = 12, 8


class SwAV(Task):
    """The crops of one image predict each other's clusters."""

    def __init__(self, data: Dataset, args: argparse.Namespace) -> None:
        super().__init__()
        self.data, self.args, self.size = data, args, len(data.train.labels)
        self.encoder = encoders.make(args.encoder, data)
        self.projector = encoders.projector(self.encoder.width)
        self.prototypes = pycl.Prototypes(encoders.DIM, args.prototypes)
        self.crop = Augment(data.channels, data.side)
        self.crop_small = Augment(data.channels, data.side, small=True)
        setting = {"temperature": args.temperature, "epsilon": args.epsilon, "code_crops": range(LARGE_CROPS)}
        self.early = pycl.SwAVLoss(**setting, group="world")
        self.late = pycl.SwAVLoss(**setting, queue_size=args.queue_size, dim=encoders.DIM, group="world")
        # at first features change too fast for a queue
        self.queue_from = args.queue_after * (self.size // min(args.batch_size, self.size))
        self.with_queue = False

    @property
    def criterion(self) -> pycl.SwAVLoss:
        """The loss of this step."""
        return self.late if self.with_queue else self.early

    def batch(self, rows: Tensor) -> list[Tensor]:
        chosen = self.data.train.images[rows]
        crops = [self.crop(chosen, LARGE_CROPS)]
        if self.args.small_crops:
            crops.append(self.crop_small(chosen, self.args.small_crops))
        return crops

    def embed(self, batch: list[Tensor]) -> Tensor:
        features = torch.cat([encoders.encode(self.encoder, crops) for crops in batch])
        return normalize(self.projector(features), dim=1).unflatten(0, (LARGE_CROPS + self.args.small_crops, -1))

    def before_step(self, step: int) -> None:
        self.prototypes.normalize_()
        self.with_queue = step >= self.queue_from

    def before_update(self, step: int) -> None:
        if step < self.args.frozen_steps:
            self.prototypes.skip_update()

    def loss(self, embeddings: Tensor, batch: list[Tensor]) -> Tensor:
        return self.criterion(embeddings, self.prototypes)

    def dense_loss(self, embeddings: Tensor, batch: list[Tensor]) -> Tensor:
        temperature, epsilon = self.args.temperature, self.args.epsilon
        return dense_swav(embeddings, self.prototypes.weight, temperature=temperature, epsilon=epsilon)

    def measure(self, thorough: bool) -> dict[str, Any]:
        self.prototypes.normalize_()
        found = evaluate.features(self.encoder, self.data)
        codes, predictions = self.assign(found.train.images)
        used = metrics.assignments(predictions)
        shape = viz.measure(self.project(self.crop(self.data.test.images, 2)).unflatten(0, (2, -1)), codes=codes)
        probes = evaluate.probes(found, self.args.seed) if thorough else {}
        of_predictions = {"predicted_perplexity": used.perplexity, "predicted_dead": used.dead}
        return {"knn": evaluate.knn(found), **probes, **shape, **of_predictions}

    def project(self, crops: Tensor) -> Tensor:
        parts = [self.projector(encoders.encode(self.encoder, part)) for part in crops.split(evaluate.CHUNK)]
        return normalize(torch.cat(parts), dim=1)

    @torch.no_grad()
    def assign(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of images, assigned all together, and what the network predicts for each by itself."""
        scores = self.prototypes(normalize(self.projector(features), dim=1))
        codes = pycl.functional.sinkhorn(scores, epsilon=self.args.epsilon)
        return codes, (scores / self.args.temperature).softmax(1)

    @torch.no_grad()
    def clusters(self) -> tuple[dict[str, Tensor], Tensor]:
        """The shares of the prototypes, and images of some from the most to the least used one."""
        self.eval()
        codes, predictions = self.assign(evaluate.features(self.encoder, self.data).train.images)
        use = {"codes": codes.mean(0).cpu(), "predictions": predictions.mean(0).cpu()}
        return use, strongest(codes, predictions.mean(0), self.data.train.images).cpu()


def strongest(codes: Tensor, use: Tensor, pictures_of: Tensor) -> Tensor:
    """The images assigned most strongly to each of some prototypes, from the most to the least used."""
    order = use.argsort(descending=True)
    some = order[torch.linspace(0, len(order) - 1, min(SHOWN_PROTOTYPES, len(order))).long()]
    return pictures_of[codes[:, some].topk(min(SHOWN_IMAGES, len(pictures_of)), dim=0).indices.T]


def summarise(data: Dataset, args: argparse.Namespace, trainer: Trainer) -> dict[str, Any]:
    """Everything the run found, as JSON; the loss of a row is the mean since the row before."""
    log = viz.read(args.out / LOG)
    losses = [row["loss"] for row in log if "loss" in row]
    measured = [row for row in log if "knn" in row]
    for before, row in zip([None, *measured], measured, strict=False):
        row["loss"] = mean(losses[before["step"] : row["step"]]) if before else None
    settings = {key: value for key, value in vars(args).items() if key not in ("data_root", "out", "quiet", "resume")}
    found = {"data": data.counts, "run": settings | {"threads": torch.get_num_threads()}}
    return found | {"rows": measured, "losses": losses, "profile": step_profile.profile(trainer)}


def table(summary: dict[str, Any]) -> str:
    """How the training went, and how the prototypes are used, as text."""
    run, data, measured = summary["run"], summary["data"], summary["rows"]
    rows = [["epoch", "loss", "kNN (%)", "code entropy", "dead", "predicted in use", "dead"]]
    for row in measured:
        loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
        codes = [f"{row['assignment_entropy']:.2f}", str(row["dead"])]
        predictions = [f"{row['predicted_perplexity']:.1f}", str(row["predicted_dead"])]
        rows.append([f"{row['epoch']:.0f}", loss, f"{100 * row['knn']:.1f}", *codes, *predictions])
    first, last = (100 * measured[at]["knn"] for at in (0, -1))
    return "\n".join(
        [
            images.title(data),
            f"{count(run['prototypes'], 'prototype')}, epsilon {run['epsilon']:g}, temperature {run['temperature']:g}, "
            f"crops {LARGE_CROPS} + {run['small_crops']}, {count(run['threads'], 'thread')}",
            *grid(rows),
            f"kNN accuracy: {first:.1f} % with the random encoder, {last:.1f} % with the trained one",
        ]
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.make_parser(__doc__, out="runs/swav_images", batch_size=64, epochs=20, lr=1e-3, temperature=0.1)
    parser.set_defaults(evaluate_every=2)
    images.add_flags(parser)
    add = parser.add_argument_group("example").add_argument
    add("--encoder", choices=sorted(encoders.ENCODERS), default="small", help="the network")
    add("--epsilon", type=float, default=0.03, help="entropy of the codes; smaller is sharper")
    add("--prototypes", type=int, default=100, help="how many")
    add("--small-crops", type=int, default=4, help="for each image, beside two large ones")
    add("--queue-size", type=int, default=128, help="earlier features that join the assignment; 0 for none")
    add("--queue-after", type=int, help="epochs without the queue; half by default")
    add("--frozen-steps", type=int, default=20, help="first steps that leave the prototypes as they were drawn")
    least = {"prototypes": 2, "small_crops": 0, "queue_size": 0, "queue_after": 0, "frozen_steps": 0}
    args = flags.parse(parser, argv, least=images.LEAST | least, positive=["epsilon"])
    if args.queue_after is None:
        args.queue_after = math.ceil(args.epochs / 2)
    return args


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the example; returns its summary on the first rank."""
    args = parse(argv)
    with flags.one_line(), ranks.start(args.device) as here:
        data = images.load(args).to(here.device)
        torch.manual_seed(args.seed)
        trainer = Trainer(task := SwAV(data, args), args, here)
        trainer.fit()
        use, members = task.clusters()
        if not here.first:
            return None
        summary = summarise(data, args, trainer)
        viz.dashboard(args.out / LOG, args.out / "dashboard.png")
        pictures.draw_clusters(summary, use, members, args.out / "clusters.png")
        print(table(summary), "", step_profile.table(summary["profile"]), sep="\n")
        runs.write(summary, args.out)
        return summary


if __name__ == "__main__":
    main()
