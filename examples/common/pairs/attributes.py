# SPDX-License-Identifier: Apache-2.0
"""What can be said of an image from its class and its pixels: facts, each a number with the phrases that say it."""

from __future__ import annotations

import math
from typing import NamedTuple

import kornia.color
import kornia.filters
import torch
from torch import Tensor

from common.images.data import Dataset

COHERENT = 0.2  # of gradients, from 0 to 1: with less there is no main direction
EVEN = 0.04  # of the range of brightness: with less no part is brighter
GREY = 0.08  # mean of saturation times value: with less there is no colour
HUES = (20, 45, 75, 160, 200, 260, 340)  # degrees: where red, orange, yellow, green, turquoise, blue and pink end


class Fact(NamedTuple):
    """One thing that a caption says; ``phrases[v]`` are the ways to say that its value is v."""

    name: str
    phrases: tuple[tuple[str, ...], ...]


BRIGHTNESS = Fact("brightness", (("dark", "dim"), ("half-lit", "medium bright"), ("bright", "light")))
CONTRAST = Fact(
    "contrast",
    (("little contrast", "flat tones"), ("some contrast", "medium contrast"), ("strong contrast", "harsh tones")),
)
COLOUR = Fact(
    "colour",
    (
        ("red", "reddish"),
        ("orange", "brownish"),
        ("yellow", "yellowish"),
        ("green", "greenish"),
        ("turquoise", "greenish blue"),
        ("blue", "bluish"),
        ("pink", "purplish"),
        ("grey", "colourless"),
    ),
)
LINES = Fact(
    "lines",
    (
        ("vertical lines", "upright lines"),
        ("rising lines", "lines up to the right"),
        ("horizontal lines", "level lines"),
        ("falling lines", "lines down to the right"),
        ("lines of all directions", "no main direction"),
    ),
)
PLACES = ("top", "bottom", "left", "right", "centre")
LIGHT = Fact(
    "light",
    (
        *((f"brightest at the {place}", f"with light on the {place}") for place in PLACES),
        ("evenly lit", "of even light"),
    ),
)


def facts_of(data: Dataset) -> tuple[list[Fact], Tensor, Tensor]:
    """What is told of the images, and its values for the training and the test images, int64 ``[N, facts]``.

    Brightness and contrast are thirds of the training images. Images of one channel have no colour to tell.
    """
    told = [Fact("name", tuple((_noun(name),) for name in data.classes)), BRIGHTNESS, CONTRAST, COLOUR, LINES, LIGHT]
    pixels = [split.images.float().div(255) for split in (data.train, data.test)]
    grey = [x.mean(1) if data.channels == 1 else kornia.color.rgb_to_grayscale(x).squeeze(1) for x in pixels]
    thirds = torch.tensor([1 / 3, 2 / 3], device=grey[0].device)
    tables = []
    for split, colours, tones in zip((data.train, data.test), pixels, grey, strict=True):
        columns = [split.labels]
        for measured in (lambda x: x.mean((1, 2)), lambda x: x.std((1, 2))):
            columns.append(torch.bucketize(measured(tones), measured(grey[0]).quantile(thirds)))
        columns += [_colour(colours), _lines(tones), _light(tones)]
        tables.append(torch.stack(columns, 1))
    if data.channels == 1:
        told.remove(COLOUR)
        tables = [torch.cat([table[:, :3], table[:, 4:]], 1) for table in tables]
    return told, *tables


def _noun(name: str) -> str:
    """The class with its article."""
    if name.isdigit():
        return f"the digit {name}"
    name = name.replace("_", " ").lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _colour(images: Tensor) -> Tensor:
    """The hue with the most colour in it, its pixels weighted by saturation and value."""
    if images.shape[1] == 1:
        return torch.zeros(len(images), dtype=torch.long, device=images.device)
    hue, saturation, value = kornia.color.rgb_to_hsv(images).flatten(2).movedim(1, 0).contiguous()
    ends = torch.tensor(HUES, device=images.device) * (math.pi / 180)
    bins = torch.bucketize(hue, ends) % len(HUES)  # red goes on above 340 degrees
    strength = saturation * value
    each = torch.zeros(len(images), len(HUES), device=images.device).scatter_add_(1, bins, strength)
    return torch.where(strength.mean(1) < GREY, len(HUES), each.argmax(1))


def _lines(grey: Tensor) -> Tensor:
    """The direction across which brightness changes most, by the structure tensor of the whole image."""
    across, down = kornia.filters.spatial_gradient(grey.unsqueeze(1)).squeeze(1).flatten(2).unbind(1)
    xx, yy, xy = (across**2).mean(1), (down**2).mean(1), (across * down).mean(1)
    coherence = ((xx - yy) ** 2 + 4 * xy**2).sqrt() / (xx + yy).clamp_min(1e-12)
    # of the gradient, from the x axis, y downwards; a line that rises to the right has one that points down and right
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    bins = (angle / (math.pi / 4)).round().long() % 4
    return torch.where(coherence < COHERENT, 4, bins)


def _light(grey: Tensor) -> Tensor:
    """The brightest part: a third of the image at a side, or its middle."""
    third = grey.shape[-1] // 3
    middle = slice(third, -third)
    parts = [grey[:, :third], grey[:, -third:], grey[:, :, :third], grey[:, :, -third:], grey[:, middle, middle]]
    means = torch.stack([part.mean((1, 2)) for part in parts], 1) - grey.mean((1, 2)).unsqueeze(1)
    most = means.max(1)
    return torch.where(most.values < EVEN, len(parts), most.indices)
