# SPDX-License-Identifier: Apache-2.0
"""Pictures of what searches find."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from common.images.pictures import DENSE, NEGATIVE, OURS, STYLE, plt

FOUND = 6  # images of a row


def first_of_each(labels: Tensor, most: int) -> Tensor:
    """Rows that nobody chose: the first of each class, of at most so many classes."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()[:most]])


def draw_search(texts: Sequence[str], images: Tensor, right: Tensor, path: Path, *, title: str) -> None:
    """A row for each query: its text, and what was found ``[Q, FOUND, C, S, S]``, framed where it is ``right``."""
    images = images.expand(-1, -1, 3, -1, -1)
    queries, found, _, side, _ = images.shape
    frame, gap = max(1, side // 12), max(1, side // 24)
    tiles = torch.full((queries, found, 3, side + 2 * frame, side + 2 * frame), 255, dtype=torch.uint8)
    tiles[right.cpu()] = (255 * torch.tensor(to_rgb(OURS))).byte().view(3, 1, 1)
    tiles[..., frame:-frame, frame:-frame] = images.cpu()
    tiles = torch.nn.functional.pad(tiles, (gap,) * 4, value=255)
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(8.4, 0.3 + 0.9 * queries), dpi=110)
        below = 1 - 0.3 / figure.get_figheight()  # the title
        axes = figure.add_axes((1 - 0.9 * found / 8.4, 0, 0.9 * found / 8.4, below))
        axes.imshow(sheet.numpy(), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for row, text in enumerate(texts):
            wrapped = textwrap.fill(text, 46)
            figure.text(0.01, below * (1 - (row + 0.5) / queries), wrapped, fontsize=8, va="center")
        figure.text(0.01, below, title, fontsize=9.5, va="bottom")
        figure.savefig(path)
        plt.close(figure)


def draw_bars(places: Sequence[str], bars: dict[str, Sequence[tuple[float, float]]], path: Path, *, title: str) -> None:
    """Shares in percent, given as pairs (mean, standard deviation): at each place a bar of each kind."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.4, 3.4), layout="constrained", dpi=110)
        width, at = 0.8 / len(bars), torch.arange(len(places))
        for number, (label, values) in enumerate(bars.items()):
            heights, spreads = (100 * torch.tensor(values, dtype=torch.float64)).unbind(1)
            colour = (OURS, DENSE, NEGATIVE)[number % 3]
            x = (at + (number - (len(bars) - 1) / 2) * width).tolist()
            axes.bar(x, heights.tolist(), 0.9 * width, yerr=spreads.tolist(), color=colour, label=label, capsize=2)
        axes.set_xticks(at.tolist(), places)
        axes.set_title(title)
        axes.legend(loc="upper left", ncols=len(bars), bbox_to_anchor=(0, -0.1))
        figure.savefig(path)
        plt.close(figure)
