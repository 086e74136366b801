# SPDX-License-Identifier: Apache-2.0
"""Pictures of what the examples find."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import FuncFormatter, LogFormatter, NullLocator
from torch import Tensor

from common.loss_cost import Cost

POSITIVE, NEGATIVE, OURS, DENSE = "#1b7f5c", "#b8b8b8", "#1b7f5c", "#c0504d"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "legend.frameon": False,
    "figure.dpi": 150,
}


def draw_similarities(measured: dict[str, dict[str, Any]], path: Path) -> None:
    """Positive and negative similarities, one panel for each title, from what :func:`pycl.viz.measure` counted."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(measured), figsize=(8.4, 3.2), sharex=True, sharey=True, layout="constrained"
        )
        for axes, (title, row) in zip(panels, measured.items(), strict=True):
            counted = [torch.tensor(row[which], dtype=torch.float64) for which in ("positives", "negatives")]
            width = 2 / len(counted[0])
            edges = torch.linspace(-1, 1, len(counted[0]) + 1)
            same, other = (counts / (counts.sum() * width) for counts in counted)
            for density, colour, label in ((other, NEGATIVE, "two images"), (same, POSITIVE, "one image")):
                axes.stairs(density.tolist(), edges.tolist(), fill=True, color=colour, alpha=0.65, label=label)
            overlap = torch.minimum(same, other).sum().item() * width
            axes.set(title=f"{title}: {100 * overlap:.0f} % overlap", xlabel="cosine similarity", xlim=(-1, 1))
            axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1", "-0.5", "0", "0.5", "1"])
        panels[0].set_ylabel("probability density")
        panels[0].legend(loc="upper left", title="views of", alignment="left")
        _save(figure, path)


def draw_costs(costs: list[Cost], path: Path, *, title: str) -> None:
    """Time and memory against the number of instances, both on logarithmic axes."""
    n = [c.instances for c in costs]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
        for axes, unit, what in zip(panels, ("ms", "mib"), ("time (ms)", "peak extra memory (MiB)"), strict=True):
            dense, ours = ([getattr(c, f"{side}_{unit}") for c in costs] for side in ("dense", "pycl"))
            axes.set(xlabel="instances in the batch", title=what, xscale="log", yscale="log")
            if None in dense + ours:
                axes.set_axis_off()
                continue
            # 4 KiB, a page, is the least that a resident high-water mark can show
            dense, ours = ([max(v, 1 / 256) for v in values] for values in (dense, ours))
            label = f"pycl: 1/{dense[-1] / ours[-1]:.1f} at {n[-1]}" if dense[-1] > ours[-1] else "pycl"
            axes.plot(n, dense, color=DENSE, marker="o", markersize=4, label="dense eager PyTorch")
            axes.plot(n, ours, color=OURS, marker="o", markersize=4, label=label)
            axes.legend(loc="upper left")
            axes.margins(y=0.08)
            axes.set_xticks(n, [str(v) for v in n])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
            axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
            axes.set_axisbelow(True)
        figure.suptitle(title, fontsize=10.5)
        _save(figure, path)


def draw_clusters(summary: dict[str, Any], use: dict[str, Tensor], members: Tensor, path: Path) -> None:
    """Loss and accuracy, how much each prototype is used, and images uint8 [P, M, C, H, W] of some prototypes."""
    rows, losses, n = summary["rows"], summary["losses"], summary["run"]["prototypes"]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplot_mosaic(
            [["loss", "images"], ["knn", "images"], ["use", "images"]], figsize=(8.4, 6.4), layout="constrained"
        )
        epochs = torch.arange(1, len(losses) + 1) * (rows[-1]["epoch"] / len(losses))
        panels["loss"].plot(epochs, losses, color=OURS, linewidth=0.8)
        panels["loss"].axhline(math.log(n), color=NEGATIVE, linestyle="--")
        panels["loss"].annotate(f"log {n}: all predictions equal", (epochs[-1], math.log(n)), ha="right", va="bottom")
        panels["loss"].set(title="loss of each step", xlabel="epoch")
        accuracy = [100 * row["knn"] for row in rows]
        panels["knn"].plot([row["epoch"] for row in rows], accuracy, color=OURS, marker="o", markersize=4)
        panels["knn"].axhline(accuracy[0], color=NEGATIVE, linestyle="--")
        panels["knn"].annotate("random encoder", (rows[-1]["epoch"], accuracy[0]), ha="right", va="bottom")
        panels["knn"].set(title="kNN accuracy (%)", xlabel="epoch")
        widest = max(share.max().item() for share in use.values()) * n
        for (label, share), colour in zip(use.items(), (NEGATIVE, OURS), strict=True):
            panels["use"].hist((share * n).tolist(), bins=20, range=(0, widest), color=colour, alpha=0.65, label=label)
        panels["use"].set(title="use of the prototypes", xlabel="share / equal share", ylabel="prototypes")
        panels["use"].legend()
        montage = torch.nn.functional.pad(members, (1, 1, 1, 1), value=255).permute(0, 3, 1, 4, 2).flatten(2, 3)
        montage = montage.flatten(0, 1)
        panels["images"].imshow(montage.expand(-1, -1, 3).numpy(), interpolation="nearest")
        panels["images"].set(title="some prototypes and their images", xticks=[], yticks=[])
        panels["images"].spines[:].set_visible(False)
        _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
