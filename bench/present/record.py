# SPDX-License-Identifier: Apache-2.0
"""The record of a run: where, when and with what it was made, its file, its lines in a CSV file."""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pycl
from pycl import doctor

from ..workloads.registry import WORKLOADS

CSV_COLUMNS = (  # docs/bench.md describes them
    "kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
    "x_value", "y_value_50", "y_value_25", "y_value_75", "dim", "dtype", "matmul_precision", "backend", "cpu", "isa",
    "threads", "torch_version", "pycl_version", "commit", "timestamp", "gpu",
)  # fmt: skip
NOT_REPEATED = ("--json", "--csv", "--plot", "--commit")  # the business of who ran it


def new_record(suite: str, command: str, source: str | None = None) -> dict[str, Any]:
    """Where, when and with what: everything but the measurements, and no path of this machine.

    Args:
        suite: name of the suite.
        command: what repeats the run.
        source: the commit, where this does not run from a checkout that knows it.
    """
    found = doctor.report()
    return {
        "suite": suite,
        "command": command,
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


def repeatable(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that say nothing about what is measured."""
    kept = []
    rest = iter(arguments)
    for argument in rest:
        if argument in NOT_REPEATED:
            next(rest)
        elif not argument.startswith(tuple(f"{name}=" for name in NOT_REPEATED)):
            kept.append(argument)
    return kept


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


def stem(record: Mapping[str, Any]) -> str:
    """The name of a record's file: what was measured, or on which GPU, as ``nvidia-h200`` for "NVIDIA H200"."""
    if "gpu" in record:
        name: str = record["gpu"]["name"]
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return "cpu" if record["suite"] == "losses" else f"cpu-{record['suite']}"


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Into the file, or into a folder under the record's name."""
    file = path / f"{stem(record)}.json" if path.is_dir() else path
    file.write_text(json.dumps(record, indent=1) + "\n")


def why_no_csv(path: Path) -> str | None:
    """Why lines of ``CSV_COLUMNS`` cannot be added to a file."""
    if path.is_dir():
        return f"{path} is a folder"
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        head = next(csv.reader(file), [])
    return None if tuple(head) == CSV_COLUMNS else f"{path} has other columns than those of docs/bench.md"


def append_csv(record: Mapping[str, Any], path: Path) -> None:
    """Add one line for every provider and metric, below a header where the file is new."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        if is_new:
            writer.writeheader()
        for row in (*record["rows"], *record["sweep"]):
            writer.writerows(_csv_lines(record, row))


def _csv_lines(record: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    workload = WORKLOADS[row["loss"]]
    shared = {
        "kernel_name": row["loss"],
        "kernel_operation_mode": "full" if workload.backward else "forward",
        "x_name": "size",
        "x_label": workload.rows_are,
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
