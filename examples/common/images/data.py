# SPDX-License-Identifier: Apache-2.0
"""Real images, held in memory: digits that come with scikit-learn, a folder of pictures, or CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from common.flags import Refused

SUFFIXES = {".jpg", ".jpeg", ".png"}
TEST_SHARE = 0.2
CIFAR = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}  # folders of torchvision's data sets


class Split(NamedTuple):
    """Images uint8 ``[N, C, H, W]`` with their class numbers ``[N]``."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


class Dataset(NamedTuple):
    """A train and a test split; ``whole`` is the train split before --long-tail took images from it."""

    name: str
    train: Split
    test: Split
    classes: list[str]
    whole: Split | None = None

    @property
    def channels(self) -> int:
        """3 for photographs, 1 for drawings."""
        return self.train.images.shape[1]

    @property
    def side(self) -> int:
        return self.train.images.shape[-1]

    @property
    def counts(self) -> dict[str, str | int]:
        """What a summary says of the data."""
        train, test = len(self.train.labels), len(self.test.labels)
        return {"name": self.name, "train": train, "test": test, "classes": len(self.classes)}

    def to(self, device: torch.device) -> Dataset:
        splits = {"train": self.train, "test": self.test, "whole": self.whole}
        return self._replace(**{name: split and split.to(device) for name, split in splits.items()})


def title(data: dict[str, str | int]) -> str:
    """The line over a table, from the ``counts`` that a summary has."""
    return f"{data['name']}: {data['train']} training and {data['test']} test images, {data['classes']} classes"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("images").add_argument
    add("--image-size", type=int, default=32, help="side that the images of a folder are resized to")
    add("--limit", type=int, help="at most so many training and so many test images, classes even")
    add(
        "--long-tail",
        type=float,
        default=1.0,
        help="how many times rarer the last class is for training than the first; what is learnt without labels is "
        "probed with all of them",
    )


LEAST = {"image_size": 8, "limit": 2}


def load(args: argparse.Namespace) -> Dataset:
    """The images of --data-root; scikit-learn's digits without it.

    Raises:
        Refused: no images there, a picture that cannot be read, classes that are in one split only.
    """
    root: Path | None = args.data_root
    if root is None:
        data = load_digits()
    elif folder := next((f for f in CIFAR if (root / f).is_dir() or root.name == f), None):
        data = load_cifar(root.parent if root.name == folder else root, CIFAR[folder])
    else:
        data = load_folder(root, args.image_size)
    if not args.long_tail >= 1:
        raise Refused(f"--long-tail must be at least 1, got {args.long_tail}")
    whole, test = _limit(data.train, args.limit), _limit(data.test, args.limit)
    return data._replace(train=long_tail(whole, args.long_tail), test=test, whole=whole)


def load_digits() -> Dataset:
    """The UCI digits: 1797 grey images of 8x8, enlarged to 16x16 so that half-pixel shifts stay smooth."""
    from sklearn.datasets import load_digits as sklearn_digits

    raw = sklearn_digits()
    images = torch.from_numpy(raw.images).float().div(16).unsqueeze(1)
    images = F.interpolate(images, size=16, mode="bilinear", align_corners=False).mul(255).round().byte()
    train, test = _stratified_split(Split(images, torch.from_numpy(raw.target).long()))
    return Dataset("digits", train, test, [str(c) for c in raw.target_names])


def load_cifar(root: Path, name: str) -> Dataset:
    """CIFAR as ``torchvision.datasets.CIFAR10(root, download=True)`` leaves it."""
    from pycl.bench.workloads.baselines import declare_torchvision

    declare_torchvision()  # its CUDA build does not import beside a CPU build of torch otherwise
    try:
        from torchvision import datasets
    except ImportError as error:
        raise Refused(f"--data-root: reading {name} takes torchvision: pip install torchvision") from error
    splits = []
    for train in (True, False):
        try:
            raw = getattr(datasets, name)(str(root), train=train)
        except (RuntimeError, OSError, EOFError) as error:
            raise Refused(f"--data-root: {name} in {root} is not complete: {str(error).splitlines()[0]}") from error
        splits.append(Split(torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(raw.targets)))
    return Dataset(name.lower(), *splits, raw.classes)


def load_folder(root: Path, side: int) -> Dataset:
    """``train/<class>/*.jpg`` and, if there is one, ``test/<class>/*.jpg``; grey where no picture has colour."""
    if not (root / "train").is_dir():
        raise Refused(f"--data-root: {root} has no folder 'train'; expected {root}/train/<class>/*.jpg or *.png")
    classes = _classes(root / "train")
    train, colour = _read_split(root / "train", classes, side)
    if len(train.labels.unique()) < 2:
        raise Refused(f"--data-root: {root / 'train'} must hold images of at least two classes")
    if (root / "test").is_dir():
        for one, other in ((root / "test", root / "train"), (root / "train", root / "test")):
            if extra := sorted(set(_classes(one)) - set(_classes(other))):
                raise Refused(f"--data-root: classes {extra} are in {one} but not in {other}")
        test, test_colour = _read_split(root / "test", classes, side)
        colour |= test_colour
    else:
        train, test = _stratified_split(train)
    if not colour:
        train, test = (Split(split.images[:, :1].contiguous(), split.labels) for split in (train, test))
    return Dataset(root.name, train, test, classes)


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _read_split(folder: Path, classes: list[str], side: int) -> tuple[Split, bool]:
    """All images below ``folder`` as RGB, and whether any of them was stored in colour."""
    import numpy as np
    from PIL import Image

    pixels, labels, colour = [], [], False
    for number, name in enumerate(classes):
        for path in sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in SUFFIXES):
            try:
                with Image.open(path) as image:
                    colour |= image.mode not in ("1", "L", "I", "I;16")
                    small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            except OSError as error:  # not an image, or one that ends too early
                raise Refused(f"--data-root: {path} is not an image Pillow can read: {error}") from error
            pixels.append(torch.from_numpy(np.array(small)))
            labels.append(number)
    if not pixels:
        raise Refused(f"--data-root: no .jpg or .png below {folder}/<class>/")
    return Split(torch.stack(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)), colour


def _stratified_split(data: Split) -> tuple[Split, Split]:
    """Train and test parts with the same class shares; always the same split, so that seeds differ only in training."""
    generator = Generator().manual_seed(0)
    train, test = [], []
    for label in data.labels.unique():
        members = (data.labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        cut = max(1, round(TEST_SHARE * len(members)))
        test.append(members[:cut])
        train.append(members[cut:])
    rows = torch.cat(train).sort().values, torch.cat(test).sort().values
    if min(map(len, rows)) == 0:
        raise Refused("--data-root: too few images to split into train and test")
    return Split(data.images[rows[0]], data.labels[rows[0]]), Split(data.images[rows[1]], data.labels[rows[1]])


def _limit(data: Split, limit: int | None) -> Split:
    if limit is None or limit >= len(data.labels):
        return data
    rank = torch.zeros_like(data.labels)  # how many earlier images share the class: low ranks first keeps classes even
    for label in data.labels.unique():
        mine = data.labels == label
        rank[mine] = torch.arange(int(mine.sum()))
    rows = torch.argsort(rank, stable=True)[:limit].sort().values
    return Split(data.images[rows], data.labels[rows])


def long_tail(split: Split, ratio: float) -> Split:
    """Class c keeps ``ratio ** (-c / (C - 1))`` of its images, as CIFAR-LT does: the last one 1 / ratio of them."""
    n_classes = int(split.labels.max()) + 1
    kept = []
    for label in range(n_classes):
        mine = (split.labels == label).nonzero().squeeze(1)
        kept.append(mine[: max(2, round(len(mine) * ratio ** (-label / max(1, n_classes - 1))))])
    rows = torch.cat(kept).sort().values
    return Split(split.images[rows], split.labels[rows])


def pick(data: Split, per_class: int, generator: Generator) -> Split:
    """``per_class`` random images of each class (fewer where a class has fewer)."""
    order = torch.randperm(len(data.labels), generator=generator)
    rows = torch.cat([order[data.labels[order] == label][:per_class] for label in data.labels.unique()])
    return Split(data.images[rows], data.labels[rows])
