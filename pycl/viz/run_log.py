# SPDX-License-Identifier: Apache-2.0
"""The log of a run: a JSON object a line, each with the step it belongs to."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

Row = dict[str, Any]


class RunLog:
    """Appends rows to a file of JSON lines, and takes back those after a step.

    A row is in the file when :meth:`append` returns. A process that is killed leaves at most one torn line,
    which the next row replaces. One process writes; any may read meanwhile.

    Args:
        path: the file; it and its folder are made by the first row.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunLog({str(self.path)!r})"

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row: numbers, texts, and lists of them, under names; ``step`` is an integer of at least 0.

        Tensors and NumPy's arrays become numbers and lists. What is not finite becomes None: JSON has no word for it.

        Raises:
            TypeError: a name that is no text, a value that is neither number nor text nor list, a step that is no
                integer.
            ValueError: no step, or a negative one.
        """
        line = json.dumps(plain_row(row)) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            _mend(file)
            file.write(line.encode())

    def truncate_after(self, step: int) -> None:
        """Drop the rows of later steps, for a run that goes on from a checkpoint of that step.

        The file is replaced at once or not at all. Nothing happens where there is none.

        Raises:
            ValueError: a broken line, as :func:`read`.
        """
        step = _step({"step": step})
        if not self.path.exists():
            return
        kept = [line for line, row in _lines(self.path) if row["step"] <= step]
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                file.writelines(line.rstrip(b"\n") + b"\n" for line in kept)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> list[Row]:
        """:func:`pycl.viz.read`."""
        return read(path)


def read(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a log in the order they were written; a torn last line, as a killed process leaves it, is dropped.

    Raises:
        OSError: the file cannot be read.
        ValueError: a broken line, with its number: not a JSON object, or one without a step.
    """
    return [row for _, row in _lines(Path(path))]


def plain_row(row: Mapping[str, Any]) -> Row:
    """The row as JSON has it."""
    if not isinstance(row, Mapping):
        raise TypeError(f"a row must be a dict, got {type(row).__name__}")
    if names := [name for name in row if not isinstance(name, str)]:
        raise TypeError(f"a row's names must be texts, got {names[0]!r}")
    return {"step": _step(row)} | {name: _plain(name, value) for name, value in row.items() if name != "step"}


def _step(row: Mapping[str, Any]) -> int:
    if "step" not in row:
        raise ValueError(f"a row must have a step, got {', '.join(row) or 'nothing'}")
    given = row["step"]
    try:
        step = operator.index(given)
    except TypeError:
        step = None
    if step is None or isinstance(given, (bool, np.bool_)):
        raise TypeError(f"step must be an integer, got {given!r}")
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    return step


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().tolist()
    elif isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(name, entry) for entry in value]
    raise TypeError(f"{name} of a row must be a number, a text or a list of them, got {type(value).__name__}")


def _lines(path: Path) -> Iterator[tuple[bytes, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                _step(row if isinstance(row, dict) else {})
            except (TypeError, ValueError) as error:
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number} is not a row with a step: {line[:60]!r}") from error
            yield line, row


def _mend(file: Any) -> None:
    """Ends the last line, or cuts off a torn one, which another row would turn into a broken line."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    *_, last = file
    try:
        json.loads(last)
        file.write(b"\n")
    except ValueError:
        file.truncate(end - len(last))
