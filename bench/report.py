# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: the record, the table for the terminal, rows of a CSV file."""

from __future__ import annotations

import csv
import datetime
import math
import os
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pycl
from pycl import doctor

from .rows import WORKS
from .work import Work

Table = tuple[str, tuple[str, ...], list[list[str]]]  # title, columns, cells

BUSY = 0.5  # load average a core before the run from which its times mean little

BOTH_WAYS = 2  # baselines up to which a table has room for their times in G beside how many times as fast ours is
CSV_COLUMNS = (
    "kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
    "x_value", "y_value_50", "y_value_25", "y_value_75", "dim", "dtype", "matmul_precision", "backend", "cpu", "isa",
    "threads", "torch_version", "pycl_version", "commit", "timestamp", "gpu",
)  # fmt: skip


MEMORY_UNITS: dict[str, Callable[[Mapping[str, Any]], float]] = {  # in MiB
    "GiB": lambda row: 2.0**10,
    "scores": lambda row: float(row["matrix_mib"]),
}


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
    """Whether all that was measured of a row's target was reached; ``None`` without a target or a measurement."""
    target, times = row["target"], row.get("time_s", {})
    if target is None:
        return None
    if row["refused"]:
        return False
    known = []
    if target["unit"] in MEMORY_UNITS:
        known.append(row["peak_mib"]["ours"] <= target["at_most"] * MEMORY_UNITS[target["unit"]](row))
    elif target["unit"] in times:
        known.append(times["ours"]["median"] <= target["at_most"] * times[target["unit"]]["median"])
    if target.get("faster") and "eager" in times:
        known.append(times["eager"]["median"] >= target["faster"] * times["ours"]["median"])
    return all(known) if known else None


def header(record: dict[str, Any]) -> str:
    """Versions and machine in one paragraph."""
    cpu, threads = record["cpu"], record["threads"]
    backend = ", ".join(sorted({row.get("backend", "cpu") for row in (*record["rows"], *record["sweep"])}))
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
    found = [f"{row['label']}: {note}" for row in record["rows"] for note in row.get("notes", ())]
    found += [f"REFUSED {row['label']}: {row['refused']}" for row in record["rows"] if row.get("refused")]
    found += peer_remarks(record)
    if (record["load_average"] or 0) > BUSY * record["threads"]["usable_cores"]:
        found.append(f"other programs kept the machine busy (load average {record['load_average']:.1f} at the start)")
    return found


def peer_remarks(record: Mapping[str, Any]) -> list[str]:
    peers = record.get("peers", {})
    used = [f"{name} {peer['version']}" for name, peer in peers.items() if peer["why_not"] is None]
    absent = [f"peer {name}: {peer['why_not']}" for name, peer in peers.items() if peer["why_not"]]
    return [*([f"peers: {', '.join(used)}"] if used else []), *absent]


def tables(record: dict[str, Any]) -> list[Table]:
    """Title, columns and cells: tables of times, then of memory, each of what is measured alike."""
    timed = [row for row in record["rows"] if row["measure"] == "time"]
    memory = [row for row in record["rows"] if row["measure"] == "memory"]
    found = [timed_table(title, rows) for title, rows in _by(timed, timed_title).items()]
    return found + [memory_table(title, rows) for title, rows in _by(memory, lambda work: work.memory).items()]


def timed_title(work: Work) -> str:
    return f"{work.what}; G is {work.bare}; medians (quartiles)"


def _by(rows: Iterable[dict[str, Any]], title: Callable[[Work], str]) -> dict[str, list[dict[str, Any]]]:
    """Rows with the same title, in the order they come."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(title(WORKS[row["loss"]]), []).append(row)
    return found


def timed_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    forms = [name for row in rows for name in ("eager", *WORKS[row["loss"]].others, "compile")]
    measured = [name for row in rows for name in row.get("time_s", ()) if name not in ("ours", "G")]
    others = list(dict.fromkeys([*forms, *measured]))
    in_g = others if len(others) <= BOTH_WAYS else []
    columns = [
        *("row", "G (ms)", "ours (ms)", "ours (G)", *(f"{name} (G)" for name in in_g)),
        *(f"vs {name}" for name in others),
        *("compiling (s)", "target", "met"),
    ]
    return title, tuple(columns), [_timed_cells(row, others, in_g, len(columns)) for row in rows]


def _timed_cells(row: dict[str, Any], others: Sequence[str], in_g: Sequence[str], width: int) -> list[str]:
    if row["refused"]:
        return [row["label"], *["refused"] * (width - 3), *_target_cells(row)]
    times, wrong = row["time_s"], row.get("wrong", {})
    medians = {name: times[name]["median"] for name in times}
    unit, ours = medians["G"], medians["ours"]
    return [
        row["label"],
        milliseconds(unit),
        "{} ({}-{})".format(*(milliseconds(times["ours"][key]) for key in ("median", "q1", "q3"))),
        f"{ours / unit:.2f}",
        *(f"{medians[name] / unit:.1f}" if name in medians else "-" for name in in_g),
        *(marked(f"{medians[name] / ours:.1f} x", wrong.get(name)) if name in medians else "-" for name in others),
        f"{row['first_call_s']['compile']:.0f}" if "compile" in times else "-",
        *_target_cells(row),
    ]


def marked(text: str, error: float | None) -> str:
    """A figure of a provider whose answer may be wrong."""
    if error is None:
        return text
    return f"{text} (off by {error:.1g})" if math.isfinite(error) else f"{text} (not finite)"


def memory_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    unit = WORKS[rows[0]["loss"]].memory_unit
    columns = ("row", f"peak ({unit})", f"eager ({unit})", "step (s)", "target", "met")
    return title, columns, [_memory_cells(row, unit, len(columns)) for row in rows]


def _memory_cells(row: dict[str, Any], unit: str, width: int) -> list[str]:
    if row["refused"]:
        return [row["label"], *["refused"] * (width - 3), *_target_cells(row)]
    peaks, eager = {name: mib / MEMORY_UNITS[unit](row) for name, mib in row["peak_mib"].items()}, "-"
    if "eager" in peaks:
        eager = f"{'~' if row['eager_measured_at'] < row['size'] else ''}{peaks['eager']:.3g}"
    return [row["label"], f"{peaks['ours']:.3f}", eager, f"{row['seconds']['ours']:.1f}", *_target_cells(row)]


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
    work = WORKS[row["loss"]]
    shared = {
        "kernel_name": row["loss"],
        "kernel_operation_mode": "full" if work.backward else "forward",
        "x_name": "size",
        "x_label": work.rows_are,
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
