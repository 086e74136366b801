# SPDX-License-Identifier: Apache-2.0
"""What the examples that train an encoder share: the network, its batches and optimizer, and their flags."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from data import Dataset, load
from torch import Generator, Tensor, nn
from tqdm import tqdm

WIDTHS = (32, 64, 128)
DIM = 128  # features of the embedding that the loss sees


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

    def forward(self, *sizes: Tensor) -> Tensor:
        """Embeddings of all images; those of one size are encoded together, and all are projected together."""
        features = [self.encoder(images.contiguous(memory_format=torch.channels_last)) for images in sizes]
        return self.projector(torch.cat(features))


class Batches:
    """Random batches of images, epoch by epoch, until the training is over; shows a bar and keeps the losses."""

    def __init__(self, images: Tensor, args: argparse.Namespace, seed: int) -> None:
        self.images = images
        self.generator = Generator().manual_seed(seed)
        self.size = min(args.batch_size, len(images))
        self.epoch = len(images) // self.size  # steps
        self.steps = min(args.epochs * self.epoch, args.max_steps or math.inf)
        self.losses: list[float] = []
        self._bar = tqdm(total=self.steps, desc=f"seed {seed}", unit="step", disable=args.quiet)

    def __iter__(self) -> Iterator[Tensor]:
        with self._bar:
            self._start = time.perf_counter()
            for step in range(self.steps):
                if step % self.epoch == 0:
                    order = torch.randperm(len(self.images), generator=self.generator)
                yield self.images[order[step % self.epoch * self.size :][: self.size]]

    def note(self, loss: float) -> None:
        """Takes down the loss of a step, and stops where there is no going on."""
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {len(self.losses)}; try a smaller --lr")
        self.losses.append(loss)
        rate = len(self.losses) * self.size / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} img/s", refresh=False)
        self._bar.update()


class Optimizer:
    """AdamW with clipped gradients; the learning rate warms up and goes down in half a cosine."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, steps: int) -> None:
        self.parameters = list(parameters)
        decay = [p for p in self.parameters if p.dim() > 1]
        rest = [p for p in self.parameters if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": 1e-3}, {"params": rest, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, lr=lr)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adam, lambda step: warm_up_then_cosine(step, steps))

    def zero_grad(self) -> None:
        self._adam.zero_grad()

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self._adam.step()
        self._schedule.step()


def warm_up_then_cosine(step: int, steps: int) -> float:
    """The learning rate's factor: up in a line over the first tenth, down in half a cosine."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


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


@torch.no_grad()
def encode(model: Model, images: Tensor) -> Tensor:
    """The encoder's features of plain images."""
    return torch.cat([model.encoder(part) for part in images.split(512)])


def make_parser(
    description: str | None, *, batch_size: int, epochs: int, lr: float, temperature: float
) -> argparse.ArgumentParser:
    """The flags that every example has, with its own defaults."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--data-root", type=Path, help="image folder with train/<class>/*.jpg or *.png, and test/<class>/ if there is")
    add("--batch-size", type=int, default=batch_size, help="images in a batch; the network sees every view of them")
    add("--epochs", type=int, default=epochs)
    add("--lr", type=float, default=lr)
    add("--temperature", type=float, default=temperature)
    add("--image-size", type=int, default=32, help="side that the images of --data-root are resized to")
    add("--out", type=Path, default=Path("demo-out"))
    add("--max-steps", type=int, help="stop the training after so many steps")
    add("--limit", type=int, help="at most so many training and so many test images")
    add("--threads", type=int, help="threads for torch; as many as it likes by default")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: list[str] | None, *, least: dict[str, int], positive: Sequence[str] = ()
) -> argparse.Namespace:
    """The command line, its numbers checked: integers against the ``least`` allowed, the others for being positive."""
    args = parser.parse_args(argv)
    common = {"batch_size": 2, "epochs": 1, "image_size": 8, "max_steps": 1, "limit": 2, "threads": 1}
    for name, low in (common | least).items():
        if (value := getattr(args, name)) is not None and value < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    for name in ("lr", "temperature", *positive):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} must be positive, got {getattr(args, name)}")
    return args


def start(args: argparse.Namespace) -> Dataset:
    """Sets the number of threads and loads the images; a message instead of a traceback where that fails."""
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        return load(args.data_root, image_size=args.image_size, limit=args.limit)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
