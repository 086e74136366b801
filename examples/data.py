# SPDX-License-Identifier: Apache-2.0
"""Real images for the examples, and augmentations that work on a whole batch at once.

Two sources: the 1797 handwritten digits that come with scikit-learn (no download), or any folder of images laid out
as ``train/<class>/*.jpg`` and, if there is one, ``test/<class>/*.jpg``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SUFFIXES = {".jpg", ".jpeg", ".png"}
TEST_SHARE = 0.2
Augmentation = Callable[[Tensor, Generator], Tensor]


class Split(NamedTuple):
    """Images ``[N, C, H, W]`` in [0, 1] with their class numbers ``[N]``."""

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """A train and a test split; ``augment`` maps a batch of images and a generator to one random view of each.

    ``crop_small`` does so with a small part of each image, and returns it at half the width.
    """

    name: str
    train: Split
    test: Split
    classes: list[str]
    augment: Augmentation
    crop_small: Augmentation


def load(data_root: Path | None, *, image_size: int, limit: int | None = None) -> Dataset:
    """The images in ``data_root``, or scikit-learn's digits; at most ``limit`` of them in each split, classes even."""
    data = load_digits() if data_root is None else load_folder(data_root, image_size)
    return data._replace(train=_limit(data.train, limit), test=_limit(data.test, limit))


def load_digits() -> Dataset:
    """The UCI digits of scikit-learn: 8x8 grey images, enlarged to 16x16 so that half-pixel shifts stay smooth."""
    from sklearn.datasets import load_digits as sklearn_digits

    raw = sklearn_digits()
    images = torch.from_numpy(raw.images).float().div(16).unsqueeze(1)
    images = F.interpolate(images, size=16, mode="bilinear", align_corners=False)
    train, test = _stratified_split(Split(images, torch.from_numpy(raw.target).long()))
    return Dataset("digits", train, test, [str(c) for c in raw.target_names], augment_drawing, crop_drawing)


def load_folder(root: Path, image_size: int) -> Dataset:
    """An image folder. Pictures with colour get colour jitter and mirroring; an all-grey folder gets neither."""
    if not (root / "train").is_dir():
        raise ValueError(f"--data-root: {root} has no folder 'train'; expected {root}/train/<class>/*.jpg or *.png")
    classes = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    train, train_colour = _read_split(root / "train", classes, image_size)
    if len(train.labels.unique()) < 2:
        raise ValueError(f"--data-root: {root / 'train'} must hold images of at least two classes")
    if (root / "test").is_dir():
        extra = sorted(p.name for p in (root / "test").iterdir() if p.is_dir() and p.name not in classes)
        if extra:
            raise ValueError(f"--data-root: classes {extra} are in {root / 'test'} but not in {root / 'train'}")
        test, test_colour = _read_split(root / "test", classes, image_size)
    else:
        (train, test), test_colour = _stratified_split(train), False
    if train_colour or test_colour:
        return Dataset(root.name, train, test, classes, augment_photo, crop_photo)
    grey = [Split(split.images[:, :1], split.labels) for split in (train, test)]
    return Dataset(root.name, *grey, classes, augment_drawing, crop_drawing)


def _read_split(folder: Path, classes: list[str], image_size: int) -> tuple[Split, bool]:
    """All images below ``folder`` as RGB, and whether any of them was stored in colour."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    pixels, labels, colour = [], [], False
    for number, name in enumerate(classes):
        for path in sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in SUFFIXES):
            try:
                with Image.open(path) as image:
                    colour |= image.mode not in ("1", "L", "I", "I;16")
                    small = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR)
            except UnidentifiedImageError as error:
                raise ValueError(f"--data-root: {path} is not an image Pillow can read") from error
            pixels.append(torch.from_numpy(np.array(small)))
            labels.append(number)
    if not pixels:
        raise ValueError(f"--data-root: no .jpg or .png below {folder}/<class>/")
    return Split(torch.stack(pixels).permute(0, 3, 1, 2).float().div(255), torch.tensor(labels)), colour


def _stratified_split(data: Split) -> tuple[Split, Split]:
    """Train and test parts with the same class shares; always the same split, so that seeds differ only in training."""
    generator = torch.Generator().manual_seed(0)
    train, test = [], []
    for label in data.labels.unique():
        members = (data.labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        cut = max(1, round(TEST_SHARE * len(members)))
        test.append(members[:cut])
        train.append(members[cut:])
    rows = torch.cat(train).sort().values, torch.cat(test).sort().values
    if min(map(len, rows)) == 0:
        raise ValueError("--data-root: too few images to split into train and test")
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


def pick(data: Split, per_class: int, generator: Generator) -> Split:
    """``per_class`` random images of each class (fewer where a class has fewer)."""
    order = torch.randperm(len(data.labels), generator=generator)
    rows = torch.cat([order[data.labels[order] == label][:per_class] for label in data.labels.unique()])
    return Split(data.images[rows], data.labels[rows])


def augment_drawing(images: Tensor, generator: Generator) -> Tensor:
    """Pen strokes: shift, turn, stretch and shear, contrast, noise, an erased patch. No mirroring."""
    draw = _Draw(len(images), generator)
    views = _warp(images, draw, angle=18.0, zoom=(0.8, 1.2), shift=0.12, stretch=0.12, shear=0.15, mirror=False)
    return _erase(_contrast_and_noise(views, draw), draw, side=0.3, share=0.5)


def crop_drawing(images: Tensor, generator: Generator) -> Tensor:
    """A part of the drawing, half as wide or somewhat more, with the same turns, contrast and noise."""
    draw = _Draw(len(images), generator)
    views = _warp(
        images, draw, angle=18.0, zoom=(0.5, 0.75), shift=1.0, stretch=0.12, shear=0.15, mirror=False, shrink=2
    )
    return _contrast_and_noise(views, draw)


def augment_photo(images: Tensor, generator: Generator) -> Tensor:
    """Photographs: random crop, mirror, brightness, contrast, saturation, hue, and one in five without colour."""
    draw = _Draw(len(images), generator)
    views = _warp(images, draw, angle=0.0, zoom=(0.45, 1.0), shift=1.0, stretch=0.15, shear=0.0, mirror=True)
    return _jitter_colour(views, draw)


def crop_photo(images: Tensor, generator: Generator) -> Tensor:
    """A smaller part of the photograph than in ``augment_photo``, with the same mirroring and colours."""
    draw = _Draw(len(images), generator)
    views = _warp(images, draw, angle=0.0, zoom=(0.25, 0.5), shift=1.0, stretch=0.15, shear=0.0, mirror=True, shrink=2)
    return _jitter_colour(views, draw)


def _contrast_and_noise(views: Tensor, draw: _Draw) -> Tensor:
    views = views * draw.uniform(0.7, 1.3) + draw.uniform(-0.1, 0.1)
    return views + 0.08 * draw.normal(views)


def _jitter_colour(views: Tensor, draw: _Draw) -> Tensor:
    mean = views.mean(dim=(1, 2, 3), keepdim=True)
    views = (views - mean) * draw.uniform(0.6, 1.4) + mean * draw.uniform(0.6, 1.4)
    grey = views.mean(dim=1, keepdim=True)
    keep = (draw.uniform(0.0, 1.0) > 0.2).float() * draw.uniform(0.4, 1.6)
    return grey + torch.einsum("bij,bjhw->bihw", _hue_rotation(draw, 0.6), views - grey) * keep


class _Draw:
    """Random numbers for the images of a batch, all from one generator."""

    def __init__(self, n_images: int, generator: Generator) -> None:
        self.n_images, self.generator = n_images, generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """One number an image, broadcastable over its pixels unless a trailing shape is given."""
        return torch.rand(self.n_images, *(shape or (1, 1, 1)), generator=self.generator) * (high - low) + low

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator)


def _warp(
    images: Tensor,
    draw: _Draw,
    *,
    angle: float,
    zoom: tuple[float, float],
    shift: float,
    stretch: float,
    shear: float,
    mirror: bool,
    shrink: int = 1,
) -> Tensor:
    """One random affine map an image. ``zoom`` is the side of the window looked at; below 1 it is a crop.

    The result has as many pixels a side as the images, divided by ``shrink``.
    """
    turn = draw.uniform(-angle, angle, 1).squeeze(1) * (math.pi / 180)
    side = draw.uniform(*zoom, 1).squeeze(1)
    aspect = draw.uniform(-stretch, stretch, 1).squeeze(1).exp()
    slant = draw.uniform(-shear, shear, 1).squeeze(1)
    move = draw.uniform(-shift, shift, 2)
    width, height = side * aspect, side / aspect
    if shift >= 1.0:  # a crop: the window may go anywhere inside the image
        width, height = width.clamp(max=1.0), height.clamp(max=1.0)
        move = move * (1 - torch.stack([width, height], dim=1))
    sign = torch.sign(draw.uniform(-1.0, 1.0, 1).squeeze(1)) if mirror else torch.ones_like(width)
    cos, sin = turn.cos(), turn.sin()
    top = torch.stack([sign * width * cos, height * (slant - sin), move[:, 0]], dim=1)
    bottom = torch.stack([sign * width * sin, height * cos, move[:, 1]], dim=1)
    size = [*images.shape[:2], *(side // shrink for side in images.shape[2:])]
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), size, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _erase(images: Tensor, draw: _Draw, *, side: float, share: float) -> Tensor:
    """Blanks a square of ``side`` times the width in ``share`` of the images."""
    _, _, height, width = images.shape
    top = draw.uniform(0.0, 1 - side) * height
    left = draw.uniform(0.0, 1 - side) * width
    row, column = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    inside = (row >= top) & (row < top + side * height) & (column >= left) & (column < left + side * width)
    chosen = draw.uniform(0.0, 1.0) < share
    return images.masked_fill(inside & chosen, 0.0)


def _hue_rotation(draw: _Draw, most: float) -> Tensor:
    """Rotations ``[B, 3, 3]`` of RGB space about the grey axis by up to ``most`` radians (Rodrigues' formula)."""
    angle = draw.uniform(-most, most, 1, 1)
    k = 3**-0.5
    cross = torch.tensor([[0.0, -k, k], [k, 0.0, -k], [-k, k, 0.0]])
    return torch.eye(3) * angle.cos() + cross * angle.sin() + (1 - angle.cos()) / 3
