# SPDX-License-Identifier: Apache-2.0
"""Pictures against N: time and memory of a CPU's sweep, time and share of the roofline from the cases of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..workloads.registry import WORKLOADS
from .figures import Row, seconds_of, share_of_roofline
from .record import stem

DIM, DTYPE = 256, "bfloat16"  # of a GPU's cases that are drawn
COLOURS = {"ours": "#1b7f5c", "eager": "#c0504d", "compile": "#d39b2a"}
OTHERS = ("#4f6db0", "#8a5aa8", "#3d9bb3", "#8c6d46", "#777777")
STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
NAMES = {"ours": "pycl", "eager": "dense eager PyTorch", "compile": "torch.compile"}
PAGE_MIB = 1 / 256  # 4 KiB, the least that a resident size can grow by
Record = Mapping[str, Any]


class Line(NamedTuple):
    label: str
    colour: str
    points: list[tuple[int, float]]
    style: str = "-"


class Panel(NamedTuple):
    title: str
    lines: list[Line]
    percent: bool = False  # a share, from 0 to 1, and not a logarithmic scale


def file_name(record: Record) -> str:
    """A GPU has one picture, a sweep one of what was swept."""
    return f"gpu-{stem(record)}.png" if "gpu" in record else f"{record['sweep'][0]['name']}.png"


def draw(record: Record, folder: Path) -> Path | None:
    """Write the picture into a folder; returns its path, or ``None`` with fewer than two sizes to draw."""
    title, panels = _of_gpu(record) if "gpu" in record else _of_sweep(record)
    if len({size for line in panels[0].lines for size, _ in line.points}) < 2:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(record)
    _save(path, title, panels)
    return path


def _of_sweep(record: Record) -> tuple[str, list[Panel]]:
    rows = [row for row in record["sweep"] if not row["refused"]]
    names = list(dict.fromkeys(name for row in rows for name in row["time_s"] if name != "G"))
    panels = [
        Panel("time of one step (ms)", _lines(rows, names, _milliseconds)),
        Panel("peak memory above the inputs (MiB)", _lines(rows, names, _mebibytes)),
    ]
    first, cpu = record["sweep"][0], f"{record['cpu']['model']}, threads: {record['threads']['count']}"
    workload = WORKLOADS[first["loss"]]
    passes = "forward and backward" if workload.backward else "forward"
    shape = f"{first['loss']} {workload.shape('N', first['dim'])}"
    return f"{shape}, {first['dtype']}, {passes}; {cpu}", panels


def _of_gpu(record: Record) -> tuple[str, list[Panel]]:
    clip, nt_xent = series(record, "clip"), series(record, "nt_xent")
    providers = list(dict.fromkeys(name for row in clip for name in row["time_s"] if name not in row["wrong"]))
    shares = []
    for loss, rows, style in (("clip", clip, "-"), ("nt_xent", nt_xent, "--")):
        points = [(row["size"], share_of_roofline(row, record["roofline"]) or 0.0) for row in rows]
        shares += [Line(loss, COLOURS["ours"], points, style)] if points else []
    panels = [
        Panel("time of one CLIP step (ms)", _lines(clip, providers, _milliseconds)),
        Panel("share of the measured matmul rate", shares, percent=True),
    ]
    return f"{record['gpu']['name']}, d = {DIM}, {DTYPE}, forward and backward", panels


def series(record: Record, loss: str) -> list[dict[str, Any]]:
    """The rows of a loss that differ in N alone, by N; a row for ``torch.compile`` adds its time to that of its N."""
    shape = {"loss": loss, "dim": DIM, "dtype": DTYPE}
    found: dict[int, dict[str, Any]] = {}
    for row in record["rows"]:
        if row.items() >= shape.items() and seconds_of(row) is not None:
            first = found.get(row["size"], row)
            joined = {name: row[name] | first[name] for name in ("time_s", "wrong")}
            found[row["size"]] = first | joined
    return [found[size] for size in sorted(found)]


def _lines(rows: Sequence[Row], providers: Sequence[str], value: Callable[[Row, str], float | None]) -> list[Line]:
    """A line for everyone who has a value and is right; it says where it ends if others go on."""
    others = dict(zip((name for name in providers if name not in COLOURS), OTHERS, strict=False))
    found = []
    for name in providers:
        right = [row for row in rows if name not in row.get("wrong", ())]
        points = [(row["size"], y) for row in right if (y := value(row, name)) is not None]
        if points:
            until = f", up to {points[-1][0]}" if points[-1][0] < rows[-1]["size"] else ""
            found.append(Line(NAMES.get(name, name) + until, COLOURS.get(name) or others.get(name, "black"), points))
    return found


def _milliseconds(row: Row, provider: str) -> float | None:
    seconds = seconds_of(row, provider)
    return None if seconds is None else 1e3 * seconds


def _mebibytes(row: Row, provider: str) -> float | None:
    return max(row["peak_mib"][provider], PAGE_MIB) if provider in row["peak_mib"] else None


def _save(path: Path, title: str, panels: Sequence[Panel]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullLocator, PercentFormatter

    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(1, len(panels), figsize=(8.6, 4.8), layout="constrained")
        for axes, panel in zip(all_axes, panels, strict=True):
            for label, colour, points, style in panel.lines:
                axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4, label=label)
            if panel.percent:
                axes.set(ylim=(0, 1))
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            else:
                axes.set(yscale="log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
            sizes = sorted({size for line in panel.lines for size, _ in line.points})
            axes.set(xscale="log", title=panel.title, xlabel="N")
            axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=7, rotation=45)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2))  # where no line goes
        figure.suptitle(title, fontsize=10)
        figure.savefig(path)
        plt.close(figure)
