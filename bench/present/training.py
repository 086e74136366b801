# SPDX-License-Identifier: Apache-2.0
"""The table of whole training steps."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..training.recipes import RECIPES
from . import figures
from .figures import Row

TITLE = (
    "One training step (encoders, loss, gradients, AdamW), float32, medians; in brackets the loss's share of the step; "
    "memory is the peak of the step above weights and batch"
)
SIDES = {"ours": "ours", "peer": "the library", "eager": "eager"}


def columns() -> list[tuple[str, Any]]:
    """Titles and cells."""
    return [
        ("model", lambda row: RECIPES[row["name"]].title),
        ("pairs", _pairs),
        *((f"{title} (a second)", partial(_speed, side)) for side, title in SIDES.items()),
        *((f"{title} (GiB)", partial(_memory, side)) for side, title in SIDES.items()),
    ]


def _pairs(row: Row) -> str:
    return f"{row['size']}" + (f", chunks of {row['chunk']}" if row["chunk"] else "")


def _speed(side: str, row: Row) -> str:
    """Rows of the unit a second, and the share of the loss."""
    unit = RECIPES[row["name"]].unit
    rows = row["size"] * (2 if unit == "images" else 1)
    seconds = figures.seconds_of(row, side)
    if seconds is None:
        return figures.NONE
    share = row["loss_s"][side] / seconds
    return f"{rows / seconds:.0f} {unit} ({share:.1%})"


def _memory(side: str, row: Row) -> str:
    return figures.formatted(row["peak_mib"][side] / 1024, ".2f")
