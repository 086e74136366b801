# SPDX-License-Identifier: Apache-2.0
"""What programs that measure one thing share: numbers from the command line, and the record at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import record as records
from .text import text


def integers(given: str) -> tuple[int, ...]:
    """Of an argument such as ``128,512``."""
    return tuple(int(n) for n in given.split(","))


def finish(record: dict[str, Any], path: Path | None) -> None:
    """Print the record, and write it where there is a path."""
    print(text(record))
    if path:
        records.write_json(record, path)
