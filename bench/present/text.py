# SPDX-License-Identifier: Apache-2.0
"""A record as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from . import tables

WIDTH = 100
GAP = "  "


def text(record: Mapping[str, Any]) -> str:
    """A paragraph, tables of aligned columns, lines; nothing is wider than ``WIDTH``."""
    parts = [textwrap.fill(tables.header(record), WIDTH)]
    for title, columns, cells in tables.tables(record, narrow=True):
        parts += ["", textwrap.fill(title, WIDTH), *grid([list(columns), *cells])]
    said = remarks(record)
    return "\n".join([*parts, *([""] if said else []), *said])


def remarks(record: Mapping[str, Any]) -> list[str]:
    """What else must be known, each remark a paragraph with its later lines indented."""
    return [textwrap.fill(remark, WIDTH, subsequent_indent=GAP) for remark in tables.remarks(record)]


def grid(rows: list[list[str]]) -> list[str]:
    """Left-aligned first column, right-aligned others, a rule below the head.

    Columns beyond ``WIDTH`` go below, beside the first column again.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for block in _blocks(widths):
        found = [
            GAP.join([row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in block)]).rstrip()
            for row in rows
        ]
        lines += ([""] if lines else []) + [found[0], "─" * max(map(len, found)), *found[1:]]
    return lines


def _blocks(widths: list[int]) -> list[list[int]]:
    """The columns after the first one in groups that fit beside it."""
    blocks: list[list[int]] = [[]]
    left = room = WIDTH - widths[0]
    for column in range(1, len(widths)):
        need = len(GAP) + widths[column]
        if need > left and blocks[-1]:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= need
    return blocks
