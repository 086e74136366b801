# SPDX-License-Identifier: Apache-2.0
"""A signal of each kind of class, and how the features of a run got better."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

from common.runs import Curve
from common.signals.data import PAIRS, Dataset, Split


def draw(data: Dataset, kind: str, curves: dict[str, list[Curve]], raw: float, path: Path) -> None:
    """One signal of every class beside the kNN accuracy on the dev split against the epoch, a line a seed.

    ``raw`` is the accuracy of the signals themselves.
    """
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8), dpi=120, layout="constrained")
        _signals(left, data.dev.to(torch.device("cpu")), data.classes, PAIRS[kind])
        for number, (loss, of_seeds) in enumerate(curves.items()):
            for seed, curve in enumerate(of_seeds):
                label = loss if seed == 0 else None
                right.plot(*zip(*curve, strict=True), color=f"C{number}", marker="o", ms=3, label=label)
        right.axhline(raw, color="#888888", linestyle="--", label="raw signals")
        right.set(title="kNN accuracy of the features, dev split (%)", xlabel="epoch")
        right.legend()
        figure.savefig(path)
        plt.close(figure)


def _signals(axes: plt.Axes, split: Split, classes: int, pair: tuple[int, int]) -> None:
    """Two channels of one signal of every class, one above the other."""
    for label in range(classes):
        x = split.x[split.y == label][0][list(pair)]
        x = (x - x.mean(1, keepdim=True)) / (x - x.mean(1, keepdim=True)).abs().max()
        for side, colour in zip(x, ("#0072B2", "#D55E00"), strict=True):
            axes.plot((side - 1.6 * label).tolist(), color=colour, linewidth=0.7)
    axes.set_yticks([-1.6 * label for label in range(classes)], [f"class {label}" for label in range(classes)])
    axes.set(title="generated: a left and a right channel", xlabel="sample")
