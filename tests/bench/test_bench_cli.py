# SPDX-License-Identifier: Apache-2.0
"""The command line of the benchmarks: tables for a terminal, who is drawn, the columns of the CSV file, limits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pycl.bench import __main__ as program
from pycl.bench.__main__ import main, select
from pycl.bench.measure import memory, sweep
from pycl.bench.measure.cpu import Cpu
from pycl.bench.measure.runner import Plan
from pycl.bench.present import plots
from pycl.bench.present.record import CSV_COLUMNS
from pycl.bench.present.tables import tables
from pycl.bench.present.text import WIDTH, grid, text
from pycl.bench.suites.losses import LOSS_CASES
from pycl.bench.workloads import baselines

ROOT = Path(__file__).parent.parent.parent
RECORDS = sorted((ROOT / "bench" / "results").glob("*.json"))
SMALL = ("--quick", "--rows", "clip-d128", "--sizes", "64", "--repeats", "2")


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_terminal_of_100_columns(path: Path) -> None:
    """Every record of the project fits, and no figure is lost: columns that do not fit are below."""
    record = json.loads(path.read_text())
    lines = text(record).splitlines()
    assert max(map(len, lines)) <= WIDTH == 100
    labels = [row[0] for _, _, cells in tables(record, narrow=True) for row in cells]
    assert len(labels) >= len(record["rows"])
    for label in labels:
        assert any(line.startswith(label) for line in lines), label


def test_columns_that_do_not_fit_are_below() -> None:
    cells = [["row", *(f"column {i}" for i in range(20))], ["first", *(str(i) for i in range(20))]]
    lines = grid(cells)
    assert max(map(len, lines)) <= WIDTH
    first = [line for line in lines if line.startswith("first")]
    assert [word for line in first for word in line.split()[1:]] == cells[1][1:]
    assert lines.count("") == len(first) - 1 > 0
    (wide,) = (line for line in grid([["row", "c" * 120], ["a", "b"]]) if line.startswith("a"))
    assert wide.split() == ["a", "b"], "a column wider than the terminal is shown nevertheless"


def swept(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    peaks = {"ours": 1.0, "eager": 3.0, "compile": 2.0, "dense library": 4.0}
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(memory, "peak", lambda case, name: {"peak_mib": peaks[name] * case.size / 64})
    peer = baselines.Peer("dense library", "torch", "clip", lambda: LOSS_CASES[0].workload.dense, dense=True)
    monkeypatch.setattr(baselines, "PEERS", (peer,))
    plan = Plan(names, 0, 1)
    return sweep.sweep(LOSS_CASES[0], sizes, plan, Cpu())[0]


def test_everyone_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = swept(monkeypatch, ("eager", "compile", "peers"), (64, 128))
    for row in rows:
        assert set(row["peak_mib"]) == {"ours", "eager", "compile", "dense library"} == set(row["time_s"]) - {"G"}
    record = {"sweep": rows, "cpu": {"model": "a CPU"}, "threads": {"count": 1}}
    _, panels = plots._of_sweep(record)
    labels = ["pycl", "dense eager PyTorch", "torch.compile", "dense library"]
    assert [[line.label for line in panel.lines] for panel in panels] == [labels, labels]
    assert len({line.colour for line in panels[0].lines}) == 4
    path = plots.draw(record, tmp_path)
    assert path is not None
    assert path.stat().st_size > 10_000


def test_a_competitor_that_is_too_slow_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "TOO_SLOW", 0.0)
    rows = swept(monkeypatch, ("eager", "peers"), (64, 128))
    assert set(rows[0]["time_s"]) == {"ours", "eager", "dense library", "G"}
    assert set(rows[1]["time_s"]) == {"ours", "G"}
    assert "a step would take about" in rows[1]["skipped"]["eager"]


def test_memory_of_everyone() -> None:
    matrix = 1024 * 1024 * 4 / 2**20
    case = LOSS_CASES[0].at(1024)
    assert memory.function_of("clip", "ours") is case.workload.ours
    assert memory.function_of("clip", "eager") is case.workload.dense
    assert memory.function_of("sinkhorn", "log") is not memory.function_of("sinkhorn", "eager")
    with pytest.raises(memory.Failed, match="inf-cl: not installed"):
        memory.function_of("clip", "inf-cl")
    assert memory.peak(case, "ours")["peak_mib"] < 4 * matrix


def test_the_page_describes_the_columns() -> None:
    page = ROOT / "docs" / "bench.md"
    if not page.exists():
        pytest.skip("runs in a checkout")
    table = page.read_text(encoding="utf-8").partition("| column |")[2].partition("\n\n")[0]
    first = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    assert tuple(name for cell in first for name in re.findall(r"`(\w+)`", cell)) == CSV_COLUMNS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--csv", "{folder}/missing/x.csv"], "--csv: there is no folder"),
        (["--json", "{folder}/missing/x.json"], "--json: there is no folder"),
        (["--csv", "{folder}"], "is a folder"),
        (["--csv", "{folder}/other.csv"], "has other columns than those of docs/bench.md"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_run(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.csv").write_text("name,seconds\n")
    monkeypatch.setattr(program, "_run", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(SystemExit, match="2"):
        main([*SMALL, *(option.format(folder=tmp_path) for option in options)])
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_lines_are_added_to_a_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    for _ in range(2):
        assert main([*SMALL, "--csv", str(path)]) == 0
    head, *lines = path.read_text().splitlines()
    assert head == ",".join(CSV_COLUMNS)
    assert len(lines) == 2 * 3  # ours, eager, G


def test_quick_stops_in_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(program, "QUICK_BUDGET", 1e-9)
    assert main([*SMALL, "--sizes", "64,128"]) == 0
    printed = capsys.readouterr().out
    assert "not reached: clip 64, d = 128, float32, 0 s of 0 s were left" in printed
    assert "not reached: clip 128, d = 128, float32, 0 s of 0 s were left" in printed


@pytest.mark.parametrize("suite", ["losses", "modifiers", "sinkhorn"])
def test_quick_measures_nothing_twice(suite: str) -> None:
    labels = [case.label + case.measure for case in select(suite, None, None, quick=True)]
    assert len(labels) == len(set(labels)) > 3


def test_libraries_where_they_are_asked_for() -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*SMALL, "--baselines", "abacus"])
    assert "peers" in program.ASKED_FOR["losses"]
    assert "peers" not in program.BASELINES["losses"]
