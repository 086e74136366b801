# SPDX-License-Identifier: Apache-2.0
"""Time of a CLIP step and share of the matmul rate against N, from the record of one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import gpu
from .gpu_report import seconds_of, share_of_roof
from .plot import COLOURS, NAMES, STYLE

DIM, DTYPE = 256, "bfloat16"
OTHERS = ("#4f6db0", "#d39b2a", "#8a5aa8", "#3d9bb3", "#8c6d46", "#777777")


def file_name(record: Mapping[str, Any]) -> str:
    return f"gpu-{gpu.file_name(record['gpu']['name'])}.png"


def series(record: Mapping[str, Any], loss: str) -> list[dict[str, Any]]:
    """The rows of a loss that differ in N alone, by N; a row for ``torch.compile`` adds its time to that of its N."""
    shape = {"loss": loss, "dim": DIM, "dtype": DTYPE}
    found: dict[int, dict[str, Any]] = {}
    for row in record["rows"]:
        if row.items() >= shape.items() and seconds_of(row) is not None:
            first = found.get(row["size"], row)
            joined = {name: row[name] | first[name] for name in ("time_s", "wrong")}
            found[row["size"]] = first | joined
    return [found[size] for size in sorted(found)]


def draw(record: Mapping[str, Any], folder: Path) -> Path | None:
    """Write the picture into a folder; returns its path, or ``None`` with fewer than two sizes to draw."""
    clip = series(record, "clip")
    if len(clip) < 2:
        return None
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

    providers = list(dict.fromkeys(name for row in clip for name in row["time_s"] if name not in row["wrong"]))
    others = dict(zip((name for name in providers if name not in COLOURS), OTHERS, strict=False))
    with plt.rc_context(STYLE):
        figure, (times, shares) = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
        for name in providers:
            right = [row for row in clip if name not in row["wrong"]]
            points = [(row["size"], 1e3 * s) for row in right if (s := seconds_of(row, name)) is not None]
            colour = COLOURS.get(name) or others.get(name)
            label = NAMES.get(name, name)
            times.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=label)
        times.set(yscale="log", title="time of one CLIP step (ms)")
        times.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        nt_xent = series(record, "nt_xent")
        for loss, rows, style in (("clip", clip, "-"), ("nt_xent", nt_xent, "--")):
            points = [(row["size"], share_of_roof(row, record["roofs"]) or 0.0) for row in rows]
            if points:
                shares.plot(
                    *zip(*points, strict=True), style, color=COLOURS["ours"], marker="o", markersize=4, label=loss
                )
        shares.set(ylim=(0, 1), title="share of the measured matmul rate")
        shares.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axes, rows in ((times, clip), (shares, [*clip, *nt_xent])):
            sizes = sorted({row["size"] for row in rows})
            axes.set(xscale="log", xlabel="N")
            axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=7, rotation=45)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.legend(frameon=False, fontsize=8)
        figure.suptitle(f"{record['gpu']['name']}, d = {DIM}, {DTYPE}, forward and backward", fontsize=10)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path := folder / file_name(record))
        plt.close(figure)
    return path
