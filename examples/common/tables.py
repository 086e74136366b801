# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned first column, right-aligned others, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "─" * len(lines[0])
    return [rule, lines[0], rule, *lines[1:], rule]


def spread(value: Sequence[float] | None, factor: float = 1, decimals: int = 1) -> str:
    """Mean and standard deviation as ``12.3 ± 0.4``; a dash where there is nothing."""
    if value is None:
        return "-"
    mean, std = value
    return f"{factor * mean:.{decimals}f}" + (f" ± {factor * std:.{decimals}f}" if std else "")


def count(n: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
