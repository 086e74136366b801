# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: the record, the table for the terminal, rows of a CSV file."""

from __future__ import annotations

import csv
import datetime
import os
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pycl
from pycl import doctor

from .runner import BASELINES

Table = tuple[str, tuple[str, ...], list[list[str]]]  # title, columns, cells

BUSY = 0.5  # load average a core before the run from which its times mean little

TIMED_COLUMNS = (
    "row", "G (ms)", "ours (ms)", "ours (G)", "eager (G)", "compile (G)", "vs eager", "vs compile", "compiling (s)",
    "target", "met",
)  # fmt: skip
MEMORY_COLUMNS = ("row", "peak (GiB)", "eager (GiB)", "step (s)", "target", "met")
CSV_COLUMNS = (
    "kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
    "x_value", "y_value_50", "y_value_25", "y_value_75", "dim", "dtype", "matmul_precision", "backend", "cpu", "isa",
    "threads", "torch_version", "pycl_version", "commit", "timestamp", "gpu",
)  # fmt: skip


def new_record(suite: str, arguments: list[str], source: str | None = None) -> dict[str, Any]:
    """Where, when and with what: everything but the measurements, and no path of this machine.

    Args:
        suite: name of the suite.
        arguments: what repeats the run.
        source: the commit, where this does not run from a checkout that knows it.
    """
    found = doctor.report()
    return {
        "suite": suite,
        "command": " ".join(["python -m pycl.bench", *arguments]),
        "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": source or commit(),
        "pycl": pycl.__version__,
        "torch": found["torch"],
        "python": found["python"],
        "cpu": found["cpu"],
        "threads": found["threads"],
        "environment": found["environment"],
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "rows": [],
        "sweep": [],
    }


def commit() -> str | None:
    """The commit of the checkout this runs from, ``+`` where files differ from it; ``None`` without a checkout."""
    root = Path(pycl.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+" if status.stdout.strip() else "")


def is_met(row: dict[str, Any]) -> bool | None:
    """Whether a row reached its target; ``None`` without a target or without the measurement it needs."""
    target, value = row["target"], None
    if target is None:
        return None
    if row["refused"]:
        return False
    if target["unit"] == "GiB":
        value = row["peak_mib"]["ours"] / 2**10
    elif target["unit"] in row["time_s"]:
        value = row["time_s"]["ours"]["median"] / row["time_s"][target["unit"]]["median"]
    if value is None or value > target["at_most"]:
        return None if value is None else False
    if target.get("faster") and "eager" in row["time_s"]:
        return bool(row["time_s"]["eager"]["median"] >= target["faster"] * row["time_s"]["ours"]["median"])
    return True


def header(record: dict[str, Any]) -> str:
    """Versions and machine in one paragraph."""
    cpu, threads = record["cpu"], record["threads"]
    backend = ", ".join(sorted({row["backend"] for row in (*record["rows"], *record["sweep"])}))
    facts = [
        f"pycl {record['pycl']} ({record['commit'] or 'no commit'}), backend {backend or 'none'}",
        f"torch {record['torch']['version']}, Python {record['python']}",
        f"{cpu['model']}, instruction set {cpu['isa'] or 'none'}, AMX: {cpu['amx']}",
        f"threads: {threads['count']}, cores: {threads['usable_cores']}",
        'float32 matmul precision "highest" unless a row says otherwise',
        record["timestamp"],
    ]
    return "; ".join(facts)


def table(record: dict[str, Any]) -> str:
    """The record as text for a terminal."""
    return layout(header(record), tables(record), remarks(record))


def layout(head: str, found: Sequence[Table], notes: Sequence[str]) -> str:
    """A paragraph, tables of aligned columns, lines."""
    parts = [textwrap.fill(head, 140)]
    for title, columns, rows in found:
        parts += ["", textwrap.fill(title, 140), *grid([list(columns), *rows])]
    return "\n".join([*parts, *notes])


def remarks(record: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know besides."""
    found = [f"{row['label']}: {note}" for row in record["rows"] for note in row["notes"]]
    found += [f"REFUSED {row['label']}: {row['refused']}" for row in record["rows"] if row["refused"]]
    if (record["load_average"] or 0) > BUSY * record["threads"]["usable_cores"]:
        found.append(f"other programs kept the machine busy (load average {record['load_average']:.1f} at the start)")
    return found


def tables(record: dict[str, Any]) -> list[Table]:
    """Title, columns and cells of the table of times and of that of memory, where they have rows."""
    timed = [timed_cells(row) for row in record["rows"] if row["measure"] == "time"]
    memory = [memory_cells(row) for row in record["rows"] if row["measure"] == "memory"]
    time_title = "Forward and backward; G is one torch.mm(X, Y.T) of the same shape and dtype; medians (quartiles)"
    memory_title = (
        "Peak memory of one step above its inputs, gradients included; ~ is scaled from a smaller size squared"
    )
    found = [(time_title, TIMED_COLUMNS, timed), (memory_title, MEMORY_COLUMNS, memory)]
    return [part for part in found if part[2]]


def timed_cells(row: dict[str, Any]) -> list[str]:
    if row["refused"]:
        return [row["label"], *["refused"] * (len(TIMED_COLUMNS) - 3), *_target_cells(row)]
    times = row["time_s"]
    unit, ours = times["G"]["median"], times["ours"]["median"]
    spread = "{} ({}-{})".format(*(milliseconds(times["ours"][key]) for key in ("median", "q1", "q3")))
    medians = [times[name]["median"] if name in times else None for name in BASELINES]
    in_g = ["-" if t is None else f"{t / unit:.1f}" for t in medians]
    gain = ["-" if t is None else f"{t / ours:.1f} x" for t in medians]
    compiling = f"{row['first_call_s']['compile']:.0f}" if "compile" in times else "-"
    return [
        row["label"],
        milliseconds(unit),
        spread,
        f"{ours / unit:.2f}",
        *in_g,
        *gain,
        compiling,
        *_target_cells(row),
    ]


def memory_cells(row: dict[str, Any]) -> list[str]:
    if row["refused"]:
        return [row["label"], *["refused"] * (len(MEMORY_COLUMNS) - 3), *_target_cells(row)]
    peaks, eager = row["peak_mib"], "-"
    if "eager" in peaks:
        eager = f"{'~' if row['eager_measured_at'] < row['size'] else ''}{peaks['eager'] / 2**10:.3g}"
    seconds = f"{row['seconds']['ours']:.1f}"
    return [row["label"], f"{peaks['ours'] / 2**10:.3f}", eager, seconds, *_target_cells(row)]


def _target_cells(row: dict[str, Any]) -> list[str]:
    met = {True: "yes", False: "no", None: "-"}[is_met(row)]
    return [row["target"]["text"] if row["target"] else "-", met]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def grid(rows: list[list[str]]) -> list[str]:
    """Left-aligned first column, right-aligned others, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return [lines[0], "─" * len(lines[0]), *lines[1:]]


def append_csv(record: dict[str, Any], path: Path) -> None:
    """Add one line for every provider and metric, below a header where the file is new."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        if is_new:
            writer.writeheader()
        for row in (*record["rows"], *record["sweep"]):
            writer.writerows(_csv_lines(record, row))


def _csv_lines(record: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {
        "kernel_name": row["loss"],
        "kernel_operation_mode": "full",
        "x_name": "size",
        "x_label": "rows of the similarity matrix",
        "x_value": row["size"],
        "dim": row["dim"],
        "dtype": row["dtype"],
        "matmul_precision": row["precision"],
        "backend": row["backend"],
        "cpu": record["cpu"]["model"],
        "isa": record["cpu"]["isa"],
        "threads": record["threads"]["count"],
        "torch_version": record["torch"]["version"],
        "pycl_version": record["pycl"],
        "commit": record["commit"],
        "timestamp": record["timestamp"],
        "gpu": record["gpu"]["name"] if "gpu" in record else None,
    }
    lines = []
    for provider, t in row.get("time_s", {}).items():
        values = {"y_value_50": 1e3 * t["median"], "y_value_25": 1e3 * t["q1"], "y_value_75": 1e3 * t["q3"]}
        lines.append({**shared, "kernel_provider": provider, "metric_name": "speed", "metric_unit": "ms", **values})
    for provider, mib in row.get("peak_mib", {}).items():
        values = dict.fromkeys(("y_value_50", "y_value_25", "y_value_75"), mib)
        lines.append({**shared, "kernel_provider": provider, "metric_name": "memory", "metric_unit": "MiB", **values})
    return lines
