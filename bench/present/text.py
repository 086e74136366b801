# SPDX-License-Identifier: Apache-2.0
"""A record as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from . import tables

WIDTH = 140


def text(record: Mapping[str, Any]) -> str:
    """A paragraph, tables of aligned columns, lines."""
    parts = [textwrap.fill(tables.header(record), WIDTH)]
    for title, columns, cells in tables.tables(record):
        parts += ["", textwrap.fill(title, WIDTH), *grid([list(columns), *cells])]
    return "\n".join([*parts, *tables.remarks(record)])


def grid(rows: list[list[str]]) -> list[str]:
    """Left-aligned first column, right-aligned others, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return [lines[0], "─" * len(lines[0]), *lines[1:]]
