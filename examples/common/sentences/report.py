# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning did to the rank correlation on the STS benchmark: tables of both splits, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from common import runs
from common.tables import grid, spread


def table(summary: dict[str, Any]) -> str:
    """Spearman before and after, by the number of features, as text."""
    data, run = summary["data"], summary["run"]
    head = f"{data['train']} pairs of similarity >= {run['least']:g}, {run['steps']} steps of {run['batch_size']}; "
    lines = [head + runs.over_seeds(summary)]
    for split, why in (("dev", "where settings are chosen"), ("test", "what is reported")):
        stages = _stages(summary)
        keys = _keys(stages, split)
        rows = [[f"{split}, first features", *(key.removeprefix(f"{split}_") for key in keys)]]
        for name, values in stages.items():
            rows.append([name, *(spread(values[key], 100, 2) for key in keys)])
        lines += ["", f"Spearman x 100 on {data[split]} pairs of the {split} split, {why}", *grid(rows)]
    return "\n".join(lines)


def _stages(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The measures before training, and after that with each loss."""
    trainings = summary["trainings"]
    before = next(iter(trainings.values()))["before"]
    return {"before": before} | {loss: trained["after"] for loss, trained in trainings.items()}


def _keys(stages: dict[str, dict[str, Any]], split: str) -> list[str]:
    """The measures of a split, from the whole embedding to its shortest prefix."""
    return [key for key in stages["before"] if key.startswith(f"{split}_")]


def draw(summary: dict[str, Any], path: Path) -> None:
    """Spearman on the test split against the number of features, a line for each loss."""
    stages = _stages(summary)
    keys = _keys(stages, "test")
    dims = [int(key.removeprefix("test_")) for key in keys]
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}):
        figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=130, layout="constrained")
        for number, (name, values) in enumerate(stages.items()):
            middle, around = ([100 * values[key][which] for key in keys] for which in (0, 1))
            style = {"color": "#888888", "linestyle": "--"} if name == "before" else {"color": f"C{number - 1}"}
            axes.errorbar(dims, middle, around, marker="o", markersize=4, capsize=3, label=name, **style)
        axes.set(xscale="log", xlabel="features that are compared", ylabel="Spearman x 100, test split")
        axes.set_xticks(dims, [str(dim) for dim in dims])
        axes.minorticks_off()
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        axes.legend()
        figure.savefig(path)
        plt.close(figure)
