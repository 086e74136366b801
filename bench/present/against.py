# SPDX-License-Identifier: Apache-2.0
"""The record of two builds as text: how many times as fast this checkout is, and whether that is more than chance."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from ..base.compare import PAIRS
from . import figures, tables
from .figures import Row
from .tables import LABEL, Column
from .text import GAP, WIDTH, grid, remarks

SAME = 0.02  # what nobody notices
TIMES = (
    "The steps of both builds, in turn; base / now is the median of the ratios of the rounds, above 1 "
    f"where now is faster; the interval encloses its 95 % interval and the medians of the {PAIRS} pairs of processes; "
    f"now is faster or slower where all of it is more than {SAME:.0%} away from 1, the same where none of it is"
)
PEAKS = "Peak memory of one step of either build above its inputs, gradients included; measured once"


def text(record: Mapping[str, Any]) -> str:
    """What was compared, a table of times, one of memory, lines."""
    base = record["base"]
    parts = [textwrap.fill(f"base: {base['ref']} ({base['commit'][:10]}); now: {tables.header(record)}", WIDTH)]
    timed = [row for row in record["rows"] if row["measure"] != "memory"]
    memory = [row for row in record["rows"] if row["measure"] == "memory"]
    for title, columns, rows in ((TIMES, TIME_COLUMNS, timed), (PEAKS, MEMORY_COLUMNS, memory)):
        if rows:
            found = tables.table(title, columns, rows)
            parts += ["", textwrap.fill(title, WIDTH), *grid([list(found.columns), *found.cells])]
    own = [
        f"{side} has workloads of its own: these benchmarks do not import with its library ({reason})"
        for side, reason in record["own_workloads"].items()
    ]
    return "\n".join([*parts, *(textwrap.fill(line, WIDTH, subsequent_indent=GAP) for line in own), *remarks(record)])


def _milliseconds(side: str) -> Column:
    def cell(row: Row) -> str:
        return "new" if side == "base" and row.get("new") else figures.milliseconds(figures.seconds_of(row, side))

    return Column(f"{side} (ms)", cell)


def _ratio(row: Row) -> str:
    return f"{row['ratio']['median']:.3f}" if "ratio" in row else figures.NONE


def _interval(row: Row) -> str:
    if "ratio" not in row:
        return figures.NONE
    low, high = row["ratio"]["low"], row["ratio"]["high"]
    return "too few rounds" if low is None else f"{low:.3f}-{high:.3f}"


def verdict(row: Row) -> str:
    """What the interval of a row's ratio says of this checkout."""
    low, high = (row.get("ratio", {}).get(key) for key in ("low", "high"))
    if low is None or high is None:
        return figures.NONE
    if low > 1 + SAME:
        return "faster"
    if high < 1 / (1 + SAME):
        return "slower"
    return "the same" if low >= 1 / (1 + SAME) and high <= 1 + SAME else "not clear"


def _peak(side: str) -> Column:
    def cell(row: Row) -> str:
        new = side == "base" and row.get("new")
        return "new" if new else figures.formatted(row["peak_mib"].get(side), ".4g")

    return Column(f"{side} (MiB)", cell)


def _peaks(row: Row) -> str:
    base, now = (row["peak_mib"].get(side) for side in ("base", "now"))
    return figures.NONE if base is None or not now else f"{base / now:.3f}"


TIME_COLUMNS = (
    LABEL,
    _milliseconds("base"),
    _milliseconds("now"),
    Column("base / now", _ratio),
    Column("interval", _interval),
    Column("rounds", lambda row: str(row["time_s"]["now"]["rounds"])),
    Column("now is", verdict),
)
MEMORY_COLUMNS = (LABEL, _peak("base"), _peak("now"), Column("base / now", _peaks))
