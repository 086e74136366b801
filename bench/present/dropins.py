# SPDX-License-Identifier: Apache-2.0
"""The table of drop-ins."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import figures
from .figures import Row

TITLE = "Forward and backward, float32, both in one process, medians; peak memory in a process for each side"


def columns() -> list[tuple[str, Any]]:
    """Titles and cells."""
    return [
        ("drop-in", lambda row: str(row["name"])),
        ("d", lambda row: str(row["dim"])),
        ("N", lambda row: str(row["size"])),
        ("the library (ms)", _library),
        ("ours (ms)", lambda row: figures.milliseconds(figures.seconds_of(row))),
        ("vs the library", lambda row: figures.times(figures.ratio(row, "peer", "ours"))),
        ("the library (MiB)", partial(_peak_mib, "peer")),
        ("ours (MiB)", partial(_peak_mib, "ours")),
    ]


def _library(row: Row) -> str:
    seconds = figures.seconds_of(row, "peer")
    return "not run: 9 GB or more" if seconds is None else figures.milliseconds(seconds)


def _peak_mib(side: str, row: Row) -> str:
    return figures.formatted(row.get("peak_mib", {}).get(side), ".3g")
