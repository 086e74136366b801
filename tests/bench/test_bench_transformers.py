# SPDX-License-Identifier: Apache-2.0
"""The bench of patched models: its table, a wrong value refused, and a row where transformers is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pycl.bench.present import page
from pycl.bench.transformers import __main__ as program


def _fake(n: int, dim: int, seconds: float) -> dict[str, Any]:
    times = {name: {"median": s, "q1": s, "q3": s, "rounds": 3} for name, s in SECONDS.items()}
    return {"size": n, "dim": dim, "time_s": times, "peak_mib": {"ours": 90.0, "theirs": 300.0, "towers": 100.0}}


SECONDS = {"ours": 0.2, "theirs": 0.5, "towers": 0.1}


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "measure", _fake)
    monkeypatch.setattr(program.importlib.metadata, "version", lambda name: "5.0")
    assert program.main(["--sizes", "64", "--dims", "8", "--json", str(tmp_path)]) == 0
    record = tmp_path / "cpu-transformers.json"
    assert json.loads(record.read_text())["command"] == "python -m pycl.bench.transformers --sizes 64 --dims 8"
    path = tmp_path / "page.md"
    path.write_text("<!-- bench:transformers -->\n<!-- /bench:transformers -->\n")
    page.main([str(record), str(path)])
    assert "| 64 | 8 | 500 | 200 | 100 | 2.5 x | 200 | 0 |" in path.read_text()


def test_a_row() -> None:
    pytest.importorskip("transformers", exc_type=ImportError)
    row = program.measure(48, 8, 0.05)
    assert set(row["time_s"]) == set(row["peak_mib"]) == {"ours", "theirs", "towers"}


def test_a_wrong_value_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter((1.0, 1.1, 0.0))
    monkeypatch.setattr(program, "model", lambda dim: None)
    monkeypatch.setattr(program, "inputs", lambda n: {})
    monkeypatch.setattr(program, "step_of", lambda *arguments: lambda: next(values))
    with pytest.raises(AssertionError, match=r"N = 48, d = 8: the loss is 1, and 1\.1 in the library"):
        program.measure(48, 8, 0.05)
