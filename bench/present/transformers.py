# SPDX-License-Identifier: Apache-2.0
"""The table of patched models of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import figures
from .figures import Row

TITLE = (
    "One step of CLIPModel with tiny towers, forward and backward, float32, all in one process, medians; the memory of "
    "the loss is the peak less that of a step of the towers alone, with a workspace of 0"
)


def columns() -> list[tuple[str, Any]]:
    """Titles and cells."""
    return [
        ("pairs", lambda row: str(row["size"])),
        ("d", lambda row: str(row["dim"])),
        *((title, partial(_milliseconds, name)) for name, title in TIMES.items()),
        ("vs transformers", lambda row: figures.times(figures.ratio(row, "theirs", "ours"))),
        ("loss, transformers (MiB)", partial(_loss_mib, "theirs")),
        ("loss, patched (MiB)", partial(_loss_mib, "ours")),
    ]


TIMES = {"theirs": "transformers (ms)", "ours": "patched (ms)", "towers": "towers alone (ms)"}


def _milliseconds(name: str, row: Row) -> str:
    return figures.milliseconds(figures.seconds_of(row, name))


def _loss_mib(name: str, row: Row) -> str:
    """What the peak has beyond that of the towers, which may have their own where the loss is over."""
    return f"{max(0.0, row['peak_mib'][name] - row['peak_mib']['towers']):.0f}"
