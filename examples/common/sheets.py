# SPDX-License-Identifier: Apache-2.0
"""Pictures of what searches find."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.pictures import DENSE, NEGATIVE, OURS, STYLE, plt

FOUND = 6  # images of a row


def first_of_each(labels: Tensor, most: int) -> Tensor:
    """Rows that nobody chose: the first of each class, of at most so many classes."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()[:most]])


def draw_search(texts: Sequence[str], images: Tensor, right: Tensor, path: Path, *, title: str) -> None:
    """A row for each query: its text, and what was found ``[Q, FOUND, C, H, W]``, framed where it is ``right``."""
    queries, found = right.shape
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(8.4, 0.3 + 0.92 * queries), dpi=110)
        grid = figure.add_gridspec(
            queries,
            found + 1,
            width_ratios=[4, *[1] * found],
            left=0.01,
            right=0.99,
            top=1 - 0.3 / figure.get_figheight(),
        )
        grid.update(bottom=0.01, wspace=0.05, hspace=0.08)
        for row, text in enumerate(texts):
            axes = figure.add_subplot(grid[row, 0])
            axes.text(0, 0.5, textwrap.fill(text, 46), fontsize=8, va="center", transform=axes.transAxes)
            axes.set_axis_off()
            for column in range(found):
                axes = figure.add_subplot(grid[row, column + 1], xticks=[], yticks=[])
                image = images[row, column].permute(1, 2, 0).expand(-1, -1, 3)
                axes.imshow(image.cpu().numpy(), interpolation="nearest")
                axes.spines[:].set(visible=bool(right[row, column]), color=OURS, linewidth=3)
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
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
