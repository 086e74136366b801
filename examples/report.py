# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: one table for the terminal and two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from loss_cost import Cost
from matplotlib.ticker import FuncFormatter, LogFormatter, NullLocator
from torch import Tensor

POSITIVE, NEGATIVE, OURS, DENSE = "#1b7f5c", "#b8b8b8", "#1b7f5c", "#c0504d"
MEASURES = {  # key: (label, factor, decimals)
    "knn": ("kNN accuracy, k = 20 (%)", 100, 1),
    "linear": ("linear probe, all labels (%)", 100, 1),
    "few_labels": ("linear probe, 10 labels a class (%)", 100, 1),
    "effective_rank": ("effective rank of the embedding", 1, 1),
    "alignment": ("alignment, 0 is best", 1, 2),
    "uniformity": ("uniformity, lower is more even", 1, 2),
}
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "legend.frameon": False,
    "figure.dpi": 150,
}


def table(summary: dict[str, Any]) -> str:
    """The summary as text: what was learnt, then what the loss costs."""
    stages = [stage for stage in ("pixels", "before", "after") if stage in summary["stages"]]
    names = {"pixels": "raw pixels", "before": "before training", "after": "after training"}
    learnt = [["", *(names[stage] for stage in stages)]]
    for key, (label, factor, decimals) in MEASURES.items():
        learnt.append([label, *(_cell(summary["stages"][stage].get(key), factor, decimals) for stage in stages)])
    costs = [Cost(**row) for row in summary["loss_cost"]]
    cost_rows = [
        ["instances", *(str(c.instances) for c in costs)],
        ["dense eager (ms)", *(f"{c.dense_ms:.1f}" for c in costs)],
        ["pycl (ms)", *(f"{c.pycl_ms:.1f}" for c in costs)],
        ["times faster", *(f"{c.dense_ms / c.pycl_ms:.1f}" for c in costs)],
        ["dense eager (MiB)", *(_mib(c.dense_mib) for c in costs)],
        ["pycl (MiB)", *(_mib(c.pycl_mib) for c in costs)],
    ]
    run, data = summary["run"], summary["data"]
    return "\n".join(
        [
            f"{data['name']}: {data['train']} training and {data['test']} test images, {data['classes']} classes",
            f"{run['loss']}, {run['views']} views, temperature {run['temperature']:g}; mean ± standard deviation over "
            f"{count(len(run['seeds']), 'seed')}, {run['train_seconds']:.0f} s of training each, "
            f"{count(run['threads'], 'thread')}",
            *_grid(learnt),
            "",
            f"one loss step, forward and backward, {run['views']} views, {run['dim']} features, backend "
            f"{run['backend']!r}: median time, peak memory above the inputs",
            *_grid(cost_rows),
        ]
    )


def count(n: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _cell(value: Sequence[float] | None, factor: float, decimals: int) -> str:
    if value is None:
        return "-"
    mean, std = value
    spread = f" ± {factor * std:.{decimals}f}" if std else ""
    return f"{factor * mean:.{decimals}f}{spread}"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _grid(rows: list[list[str]]) -> list[str]:
    """Left-aligned first column, right-aligned others, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "─" * len(lines[0])
    return [rule, lines[0], rule, *lines[1:], rule]


def draw_similarities(histograms: dict[str, tuple[Tensor, Tensor, Tensor]], path: Path) -> None:
    """Positive and negative similarities, one panel for each title; values are (positives, negatives, edges)."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(histograms), figsize=(8.4, 3.2), sharex=True, sharey=True, layout="constrained"
        )
        for axes, (title, (positives, negatives, edges)) in zip(panels, histograms.items(), strict=True):
            width = (edges[1] - edges[0]).item()
            same, other = (counts / (counts.sum() * width) for counts in (positives, negatives))
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


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
