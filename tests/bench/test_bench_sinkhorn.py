# SPDX-License-Identifier: Apache-2.0
"""The suite "sinkhorn": its contestants, what is wrong says so, targets, records, README block, and its GPU rows."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench import _one_thread  # noqa: F401  a fixture
from torch import Tensor

from pycl.backends import registry as backends
from pycl.bench import gpu_report, gpu_runner, memory, readme, report, rows, runner, sinkhorn, truth
from pycl.bench.__main__ import main, select
from pycl.bench.gpu_rows import GPU_ROWS
from pycl.bench.work import step_of

ROWS = {row.name: row for row in rows.SINKHORN_ROWS}
STORED = rows.WORKS["sinkhorn"]
FORMS = {"eager": STORED.dense, **STORED.others}
FAST = ("--suite", "sinkhorn", "--sizes", "32", "--repeats", "2", "--baselines")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record and the CSV lines of one small run."""
    folder = tmp_path_factory.mktemp("bench")
    chosen = ("--rows", "sinkhorn-64,sinkhorn-fp16,swav,potentials,sinkhorn-memory")
    assert main([*FAST, ",".join(runner.FORMS), *chosen, "--json", str(folder), f"--csv={folder / 'lines.csv'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def record(written: Path) -> dict[str, Any]:
    return json.loads((written / "cpu-sinkhorn.json").read_text())


# ---- contestants


@pytest.mark.parametrize("name", FORMS)
def test_forms_compute_the_codes(name: str) -> None:
    inputs = STORED.inputs(40, 30, torch.float64)
    (want,) = truth.expected("sinkhorn", inputs)
    close = {"rtol": 1e-4, "atol": 1e-6} if name == "dinov2" else {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(FORMS[name](*inputs).double(), want, **close)
    torch.testing.assert_close(want.sum(1), torch.ones(40, dtype=torch.float64))


def test_scores_reach_what_overflows() -> None:
    (scores,) = STORED.inputs(256, 300, torch.float16)
    assert 0.6 < scores.max() <= 1
    overflowing = {name for name, form in FORMS.items() if not form(scores).isfinite().all()}
    assert overflowing == {"eager", "scaling"}


@pytest.mark.parametrize("name", rows.WORKS)
def test_every_work_has_a_dense_form_that_is_right(name: str) -> None:
    work = rows.WORKS[name]
    inputs = work.inputs(16, 8, torch.float64)
    for got, want in zip(step_of(work.dense, inputs)(), truth.expected(name, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert [x.requires_grad for x in inputs] == [work.backward] * len(inputs)


def test_every_row_passes_the_gate() -> None:
    for row in rows.SINKHORN_ROWS:
        runner.gate(row.at(16))


# ---- measuring


def test_record(record: dict[str, Any]) -> None:
    *timed, memory_row = record["rows"]
    assert record["peers"] == {}
    for row in timed:
        own = {"sinkhorn": set(FORMS), "sinkhorn, out=": {"eager", "scaling"}}.get(row["loss"], {"eager"})
        assert row["refused"] is None
        assert set(row["time_s"]) == {"ours", "G", *own}
    values = [list(row["errors"]) for row in timed]
    assert values == [["codes"], ["codes"], ["potentials"], ["loss", "gradient 0", "gradient 1"]]
    assert memory_row["matrix_mib"] == 32 * 3000 * 4 / 2**20


def test_wrong_contestants_are_shown_as_such(record: dict[str, Any]) -> None:
    wrong = {row["name"]: row["wrong"] for row in record["rows"] if row["measure"] == "time"}
    assert wrong.pop("sinkhorn-fp16") == {"eager": math.inf, "scaling": math.inf}
    assert not any(wrong.values())
    (_, columns, cells), *_ = report.tables(record)
    fp16 = dict(zip(columns, next(row for row in cells if "float16" in row[0]), strict=True))
    assert fp16["vs eager"].endswith(" x (not finite)")
    assert "(" not in fp16["vs dinov2"]
    assert report.marked("2.0 x", 0.06) == "2.0 x (off by 0.06)"


def test_a_wrong_answer_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(scores: Tensor, backend: str | None = None) -> Tensor:
        return sinkhorn.published(scores - scores.amax(1, keepdim=True))

    monkeypatch.setitem(rows.WORKS, "sinkhorn", replace(STORED, ours=shifted))
    row = runner.measure(ROWS["sinkhorn-64"].at(32), ("eager",), seconds=0, rounds=1)
    assert row["refused"].startswith("codes is off by")
    assert "time_s" not in row


def test_tables_of_a_suite(record: dict[str, Any]) -> None:
    stored, implicit, peak = report.tables(record)
    assert stored[0].startswith("Codes of stored scores, 3 iterations, forward; eager is the published iteration")
    assert stored[0].endswith("G is one copy of the scores; medians (quartiles)")
    assert stored[1][4:9] == ("vs eager", "vs dinov2", "vs scaling", "vs log", "vs compile")
    assert implicit[1][4:8] == ("eager (G)", "compile (G)", "vs eager", "vs compile")
    assert [cells[0] for cells in implicit[2]] == [
        "potentials 32, K = 3000, d = 128, float32", "swav 8 x 32, K = 3000, d = 128, float32"
    ]  # fmt: skip
    assert peak[1][1] == "peak (scores)"
    assert all(len(cells) == len(columns) for _, columns, rows in (stored, implicit, peak) for cells in rows)


def test_csv(written: Path) -> None:
    with (written / "lines.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    modes = {line["kernel_name"]: line["kernel_operation_mode"] for line in lines}
    assert modes == {"sinkhorn": "forward", "potentials": "forward", "swav": "full"}
    assert {line["x_label"] for line in lines} == {"samples"}


def test_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak", lambda row, provider: {"peak_mib": row.size / 10, "seconds": 0.0})
    assert main([*FAST, "eager", "--rows", "sinkhorn-64", "--sizes", "16,32", "--plot", str(tmp_path)]) == 0
    assert (tmp_path / "sinkhorn-64.png").stat().st_size > 10_000


def test_dense_memory_grows_with_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak", lambda row, provider: {"peak_mib": float(row.size), "seconds": 0.0})
    found = memory.measure(ROWS["sinkhorn-memory"].at(3 * memory.EAGER_SIZE), ("eager",))
    assert found["peak_mib"]["eager"] == 3 * memory.EAGER_SIZE


def test_memory_counts_the_codes() -> None:
    row = ROWS["sinkhorn-memory"].at(1024)
    assert memory.peak(row, "ours")["peak_mib"] > 0.9 * row.matrix_bytes / 2**20


# ---- rows, targets, command line


def test_targets() -> None:
    assert str(ROWS["sinkhorn"].target) == ">= 6 x lightly, >= 6 x eager"
    assert str(ROWS["sinkhorn-memory"].target) == "<= 1.2 scores"
    times = {name: {"median": seconds} for name, seconds in {"ours": 1.0, "eager": 7.0, "lightly": 5.0}.items()}
    row = {"refused": None, "target": asdict(ROWS["sinkhorn"].target), "time_s": times}
    assert report.is_met(row) is False, "slower than 6 x lightly"
    times["lightly"] = {"median": 6.5}
    assert report.is_met(row) is True
    del times["lightly"]
    assert report.is_met(row) is True, "what is not installed says nothing"
    del times["eager"]
    assert report.is_met(row) is None
    peak = {"refused": None, "target": asdict(ROWS["sinkhorn-memory"].target), "matrix_mib": 10.0}
    assert report.is_met(peak | {"peak_mib": {"ours": 11.9}}) is True
    assert report.is_met(peak | {"peak_mib": {"ours": 12.1}}) is False


def test_quick_makes_no_row_larger() -> None:
    quick = {row.name: row.size for row in select("sinkhorn", None, None, quick=True)}
    assert quick["sinkhorn-64"] == 64
    assert quick["sinkhorn"] == 512


def test_peers_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.6.0")
    monkeypatch.setattr("pycl.bench.peers._lightly_sinkhorn", lambda: sinkhorn.published)
    peer = runner.peers.Peer("lightly", "lightly", "sinkhorn", lambda: sinkhorn.published)
    monkeypatch.setattr(runner.peers, "PEERS", (peer, replace(peer, loss="nt_xent")))
    record: dict[str, Any] = {}
    (found,) = runner.find_peers(record, rows.SINKHORN_ROWS, ("peers",))
    assert record["peers"] == {"lightly": {"version": "1.6.0", "why_not": None}}
    assert report.peer_remarks(record) == ["peers: lightly 1.6.0"]
    assert set(runner.candidates(ROWS["sinkhorn"], ("peers",), [found])) == {"ours", "lightly"}
    assert set(runner.candidates(ROWS["swav"], ("peers",), [found])) == {"ours"}
    assert runner.find_peers(record, rows.SINKHORN_ROWS, ("eager",)) == []


def test_readme_block(written: Path, record: dict[str, Any]) -> None:
    path = written / "README.md"
    path.write_text("<!-- bench:sinkhorn -->\n<!-- /bench:sinkhorn -->\n")
    assert readme.main([str(written / "cpu-sinkhorn.json"), str(path)]) == 0
    text = path.read_text()
    assert text.count("| row |") == 3
    assert record["command"] in text
    assert "not finite" in text


# ---- on a GPU


def test_gpu_rows_and_their_targets() -> None:
    small, large = (row for row in GPU_ROWS if row.loss == "sinkhorn")
    assert (small.size, small.dim, str(small.target)) == (4096, 3000, "<= 80 us")
    assert (large.size, large.dim, str(large.target)) == (4096, 65536, ">= 10 x eager")
    roofs = {"bfloat16": 8e14, "copy": 4.3e12}
    described = runner.describe(small)
    assert gpu_report.floor_seconds(described, roofs) == pytest.approx(28.6e-6, rel=1e-2)
    for seconds, met in ((79e-6, "yes"), (81e-6, "no: time")):
        row = described | {"time_s": {"ours": {"median": seconds}}}
        assert gpu_report.met_text(row, roofs) == met
    assert gpu_report.met_text(described, roofs) == "not measured"


def test_backends_beside_the_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_not", lambda name, *_: "not built" if name == "absent" else None)
    monkeypatch.setattr(backends, "PREFERENCE_OF", {backends.SINKHORN: {"cuda": ("cuda", "absent", "triton")}})
    row = next(row for row in GPU_ROWS if row.loss == "sinkhorn")
    makers = gpu_runner._other_backends(row, "cuda")
    assert list(makers) == ["triton"]
    assert makers["triton"]().keywords == {"backend": "triton"}
