# SPDX-License-Identifier: Apache-2.0
"""The log of a run: what is written comes back, whatever a killed process left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pycl.viz import RunLog, read


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "runs" / "run.jsonl")


def fill(log: RunLog, *steps: int) -> None:
    for step in steps:
        log.append({"step": step, "loss": step / 2})


def steps(log: RunLog) -> list[int]:
    return [row["step"] for row in read(log.path)]


def test_rows_come_back(log: RunLog) -> None:
    rows = [{"step": 0, "loss": 0.5}, {"step": 3, "positives": [1, 2], "note": "é", "done": True, "x": None}]
    for number, row in enumerate(rows, 1):
        log.append(row)
        assert read(log.path) == RunLog.read(str(log.path)) == rows[:number]


def test_numbers_of_other_libraries(log: RunLog) -> None:
    log.append(
        {
            "step": np.int64(4),
            "loss": torch.tensor(0.5, requires_grad=True),
            "half": torch.tensor([0.25], dtype=torch.bfloat16),
            "counts": np.arange(3),
            "one": np.float32(1.5),
        }
    )
    assert read(log.path) == [{"step": 4, "loss": 0.5, "half": [0.25], "counts": [0, 1, 2], "one": 1.5}]


def test_what_is_not_finite_is_null(log: RunLog) -> None:
    log.append({"step": 1, "loss": float("nan"), "lists": [1.0, float("inf")]})
    assert "NaN" not in log.path.read_text()
    assert read(log.path) == [{"step": 1, "loss": None, "lists": [1.0, None]}]


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no step": ({"loss": 1.0}, ValueError, "a row must have a step, got loss"),
    "step of a fraction": ({"step": 1.0}, TypeError, "step must be an integer, got 1.0"),
    "step that is a truth": ({"step": True}, TypeError, "step must be an integer, got True"),
    "negative step": ({"step": -1}, ValueError, "step must be at least 0, got -1"),
    "object": ({"step": 1, "model": object()}, TypeError, "model of a row must be a number, .* got object"),
    "dict": ({"step": 1, "inner": {"a": 1}}, TypeError, "inner of a row must be a number, .* got dict"),
    "name": ({"step": 1, 2: 3}, TypeError, "names must be texts, got 2"),
    "list": ([("step", 1)], TypeError, "a row must be a dict, got list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_not_written(case: str, log: RunLog) -> None:
    row, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        log.append(row)
    assert not log.path.exists()


@pytest.mark.parametrize("cut", range(1, len('{"step": 3, "loss": 1.5}') + 2))
def test_a_line_that_is_torn_anywhere(cut: int, log: RunLog) -> None:
    """It is dropped, the next row takes its place; a row that lacks nothing but its end is kept."""
    fill(log, 1, 2, 3)
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    whole = [1, 2] if cut > 1 else [1, 2, 3]
    assert steps(log) == whole
    fill(log, 7)
    assert steps(log) == [*whole, 7]
    assert log.path.read_bytes().endswith(b'{"step": 7, "loss": 3.5}\n')


def test_the_first_line_may_be_torn(log: RunLog) -> None:
    fill(log, 1)
    log.path.write_bytes(log.path.read_bytes()[:5])
    assert read(log.path) == []
    fill(log, 2)
    assert steps(log) == [2]


@pytest.mark.parametrize("line", ["{torn", "[1]", '{"loss": 1}', '{"step": "1"}', "", "\0\0"])
def test_a_broken_line_elsewhere_is_named(line: str, log: RunLog) -> None:
    fill(log, 1, 2)
    with log.path.open("a") as file:
        file.write(f"{line}\n")
    fill(log, 3)
    with pytest.raises(ValueError, match=r"run\.jsonl, line 3 is not a row with a step"):
        read(log.path)


def test_a_resumed_run(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(log, 2, 4, 6, 8)
    log.path.write_bytes(log.path.read_bytes()[:-3])
    kept = log.path.read_bytes().splitlines(keepends=True)[:2]
    log.truncate_after(5)
    assert log.path.read_bytes() == b"".join(kept)
    fill(log, 6, 8)
    assert steps(log) == [2, 4, 6, 8]
    assert list(log.path.parent.iterdir()) == [log.path]


def test_a_row_without_its_end_is_ended(log: RunLog) -> None:
    fill(log, 1, 2)
    log.path.write_bytes(log.path.read_bytes()[:-1])
    log.truncate_after(2)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]
    assert log.path.read_bytes().endswith(b"\n")


def test_a_truncation_that_fails_changes_nothing(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(log, 1, 2)
    before = log.path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        log.truncate_after(1)
    assert log.path.read_bytes() == before
    assert list(log.path.parent.iterdir()) == [log.path]


def test_nothing_to_truncate(log: RunLog) -> None:
    log.truncate_after(3)
    assert not log.path.exists()
    with pytest.raises(ValueError, match="step must be at least 0"):
        log.truncate_after(-1)
