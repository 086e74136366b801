# SPDX-License-Identifier: Apache-2.0
"""Time and memory against the size of the batch, ours and dense eager, each measured as long as eager fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import memory, runner
from .rows import WORKS, Row

SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
QUICK_SIZES = (256, 512, 1024, 2048)
TOO_SLOW = 15.0  # seconds of a dense step
COLOURS = {"ours": "#1b7f5c", "eager": "#c0504d"}
STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
NAMES = {"ours": "pycl", "eager": "dense eager PyTorch"}


def sweep(row: Row, sizes: Sequence[int], *, seconds: float, rounds: int | None) -> list[dict[str, Any]]:
    """The row with its memory at every size; eager is left out from where a step would last too long or not fit."""
    found: list[dict[str, Any]] = []
    baselines: tuple[str, ...] = ("eager",)
    for size in sorted(sizes):
        here = replace(row.at(size), target=None, measure="time")
        if found and "eager" in found[-1].get("time_s", {}):
            growth = here.matrix_bytes / row.at(found[-1]["size"]).matrix_bytes
            slow = growth * found[-1]["time_s"]["eager"]["median"] > TOO_SLOW
            large = growth * found[-1]["peak_mib"]["eager"] > 0.8 * _free_mib()
            baselines = () if slow or large else baselines
        record = runner.measure(here, baselines, seconds=seconds, rounds=rounds)
        peaks = {provider: memory.peak(here, provider)["peak_mib"] for provider in ("ours", *baselines)}
        found.append(record | {"peak_mib": peaks})
    return found


def _free_mib() -> float:
    try:
        return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        return float("inf")


def draw(record: dict[str, Any], folder: Path) -> Path:
    """Write the picture of a record's sweep into a folder; returns its path."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullLocator

    rows = [row for row in record["sweep"] if not row["refused"]]
    panels = {"time of one step (ms)": _milliseconds, "peak memory above the inputs (MiB)": _mebibytes}
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
        for axes, (title, value_of) in zip(all_axes, panels.items(), strict=True):
            for name, colour in COLOURS.items():
                points = [(row["size"], value) for row in rows if (value := value_of(row, name)) is not None]
                if points:
                    label = NAMES[name] + (f", up to {points[-1][0]}" if len(points) < len(rows) else "")
                    axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=label)
            axes.set(xscale="log", yscale="log", title=title, xlabel="N")
            axes.set_xticks(sizes := [row["size"] for row in rows], [str(size) for size in sizes], fontsize=8)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
            axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
            axes.set_axisbelow(True)
        all_axes[0].legend(frameon=False)
        cpu, threads = record["cpu"]["model"], record["threads"]["count"]
        first, work = rows[0], WORKS[rows[0]["loss"]]
        passes = "forward and backward" if work.backward else "forward"
        shape = f"{first['loss']} {work.shape('N', first['dim'])}"
        figure.suptitle(f"{shape}, {first['dtype']}, {passes}; {cpu}, threads: {threads}", fontsize=10)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path := folder / f"{first['name']}.png")
        plt.close(figure)
    return path


def _milliseconds(row: dict[str, Any], provider: str) -> float | None:
    return 1e3 * row["time_s"][provider]["median"] if provider in row["time_s"] else None


def _mebibytes(row: dict[str, Any], provider: str) -> float | None:
    # 4 KiB, a page, is the least that a resident size can grow by
    return max(row["peak_mib"][provider], 1 / 256) if provider in row["peak_mib"] else None
