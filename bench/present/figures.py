# SPDX-License-Identifier: Apache-2.0
"""Figures of a record's row, as numbers and as the text of a cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
NONE = "-"  # what was not measured, or does not apply


def seconds_of(row: Row, provider: str = "ours") -> float | None:
    timing = row.get("time_s", {}).get(provider)
    return None if timing is None else float(timing["median"])


def ratio(row: Row, over: str, under: str) -> float | None:
    """How many times as long one provider takes as another one."""
    above, below = seconds_of(row, over), seconds_of(row, under)
    return None if above is None or below is None else above / below


def floor_seconds(row: Row, rates: Mapping[str, float]) -> float | None:
    """What the least operations of a step take at the rate of a bare matrix product, or its bytes at that of a copy."""
    floor = max(row["floor_flop"] / rates[row["format"]], row["floor_bytes"] / rates["copy"])
    return float(floor) if floor else None


def share_of_roofline(row: Row, rates: Mapping[str, float]) -> float | None:
    seconds, floor = seconds_of(row), floor_seconds(row, rates)
    return None if seconds is None or floor is None else floor / seconds


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def spread(timing: Mapping[str, float] | None) -> str:
    """Median and quartiles; one sample has none."""
    if timing is None or timing["rounds"] == 1:
        return milliseconds(None if timing is None else timing["median"])
    return "{} ({}-{})".format(*(milliseconds(timing[key]) for key in ("median", "q1", "q3")))


def times(value: float | None, error: float | None = None) -> str:
    """How many times as fast; whoever is that much slower may be wrong, too."""
    return NONE if value is None else marked(f"{value:.1f} x", error)


def marked(text: str, error: float | None) -> str:
    """A figure of a provider whose answer may be wrong."""
    if error is None:
        return text
    return f"{text} (off by {error:.1g})" if math.isfinite(error) else f"{text} (not finite)"


def formatted(value: float | int | None, form: str = "") -> str:
    return NONE if value is None else format(value, form)
