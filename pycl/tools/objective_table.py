# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/objectives.md from :mod:`pycl.testing.objectives`: ``make objective-table``.

The memory of a step is that of a record of ``python -m pycl.bench --suite objectives``, where there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from pycl.testing.objectives import OBJECTIVES, OUTSIDE, Objective, Paper
from pycl.tools.triton_tables import markdown, write

N, D = 16384, 32  # where memory is stated: the size of the suite's memory rows
HEAD = ("function", "paper", "what of it", "made of", "their code stores", "ours takes", "where they disagree")


def tables_of(peaks: Mapping[str, float]) -> dict[str, str]:
    """The block of every marker; ``peaks`` are MiB of a step by the name of a row."""
    known = [(row, row.paper) for row in OBJECTIVES.values() if row.paper]
    lines = (line(row, paper, peaks.get(row.name)) for row, paper in known)
    return {
        "objectives": markdown(HEAD, lines),
        "outside": markdown(("paper", "why it is outside"), OUTSIDE.items()),
    }


def line(row: Objective, paper: Paper, peak: float | None) -> tuple[str, ...]:
    """One line of the table."""
    theirs = "-" if paper.official is None else size(paper.official(N, D) / 2**20)
    ours = "not measured" if peak is None else size(peak)
    name = f"`{row.function.__name__}`"
    return name, f"[{paper.title}]({paper.link})", paper.equation, paper.engine, theirs, ours, paper.differs or "-"


def size(mib: float) -> str:
    """MiB or GiB with two digits."""
    return f"{mib / 1024:.2g} GiB" if mib >= 1000 else f"{mib:.2g} MiB" if mib < 100 else f"{mib:.0f} MiB"


def peaks_of(record: Path) -> dict[str, float]:
    """MiB of a step from a record's memory rows; nothing where there is no record."""
    if not record.exists():
        return {}
    rows = json.loads(record.read_text(encoding="utf-8"))["rows"]
    return {row["loss"]: row["peak_mib"]["ours"] for row in rows if row["measure"] == "memory" and not row["refused"]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pycl.tools.objective_table", description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("record", type=Path)
    asked = parser.parse_args(arguments)
    write(asked.page, tables_of(peaks_of(asked.record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
