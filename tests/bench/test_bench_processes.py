# SPDX-License-Identifier: Apache-2.0
"""A run of the suite "gpu" keeps what it has measured, whatever a process of it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
from helpers import bench_on_cpu
from helpers.bench_on_cpu import ABORTS, BREAKS, EXITS, ILLEGAL, NAME, SMALL

from pycl.bench import gpu, gpu_report, gpu_runner, gpu_suite, gpu_worker
from pycl.bench.__main__ import main
from pycl.bench.gpu_rows import GPU_ROWS
from pycl.bench.gpu_worker import Died, Worker


def test_what_dies_is_left_out_and_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_worker, "prepare", bench_on_cpu.play_deadly)
    dims = {"first": 32, "ours exits": EXITS, "a peer aborts": ABORTS, "a peer breaks the GPU": BREAKS, "last": 32}
    rows = [replace(SMALL, name=name, dim=dim) for name, dim in dims.items()]
    record: dict[str, Any] = {"rows": []}
    kept: list[int] = []
    gpu_suite.run(
        record,
        rows,
        ("eager", "peers"),
        budget=900,
        seconds=0,
        rounds=1,
        progress=lambda _: kept.append(len(record["rows"])),
    )
    assert kept == [0, 0, 1, 2, 3, 4], "not every row was in the record before the next one began"
    assert record["gpu"]["name"] == NAME
    assert record["peers"] == {p: {"version": version("torch"), "why_not": None} for p in ("aborts", "breaks")}
    found = {row["name"]: row for row in record["rows"]}
    assert list(found) == list(dims)
    assert found["ours exits"]["refused"] == "its process ended: exit status 3"
    measured = {name: set(row["time_s"]) for name, row in found.items() if not row["refused"]}
    everyone = {"ours", "eager", "aborts", "breaks"}
    assert measured == {
        "first": everyone,
        "a peer aborts": everyone - {"aborts"},
        "a peer breaks the GPU": everyone - {"breaks"},
        "last": everyone,
    }
    assert found["a peer aborts"]["skipped"] == {"aborts": "its process ended: ended by SIGABRT"}
    assert found["a peer breaks the GPU"]["skipped"] == {"breaks": f"its process ended: RuntimeError: {ILLEGAL}"}
    assert f"REFUSED {rows[1].label}: its process ended: exit status 3" in gpu_report.remarks(record)


def test_a_process_that_does_not_answer_is_ended() -> None:
    worker = Worker()
    try:
        assert worker.call(bench_on_cpu.answer, 41, limit=120.0) == 42
        start = time.monotonic()
        with pytest.raises(Died, match="no answer in 1 s") as died:
            worker.call(bench_on_cpu.sleep, 600.0, limit=1.0)
        assert died.value.at == "sleeping"
    finally:
        worker.close()
    assert time.monotonic() - start < 60
    assert not worker._process.is_alive()


def test_budget_takes_rows_in_order_and_lists_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"a": 1.0, "too long": 1e6, "b": 1.0}
    for name, fake in bench_on_cpu.FAKES.items():
        monkeypatch.setattr(gpu, name, fake)
    monkeypatch.setattr(gpu_suite, "Worker", bench_on_cpu.Here)
    monkeypatch.setattr(gpu_suite, "predicted_seconds", lambda row, roofs: needs[row.name])
    rows = [replace(SMALL, name=name) for name in needs]
    record: dict[str, Any] = {"rows": []}
    gpu_suite.run(record, rows, ("eager",), budget=60.0, seconds=0, rounds=1)
    assert [row["name"] for row in record["rows"]] == ["a", "b"]
    (missed,) = record["not_reached"]
    assert missed["name"] == "too long"
    assert missed["reason"].startswith("needs about 1000000 s")
    late = gpu_runner.measure(SMALL, ("eager",), [], seconds=0, rounds=1, stop=0.0)
    assert late["skipped"] == {"eager": "the time was up"}
    assert set(late["time_s"]) == {"ours"}


def test_a_gpu_that_cannot_be_used_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(at: Callable[[str], None]) -> None:
        at("roofs")
        raise RuntimeError(ILLEGAL)

    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu_suite, "Worker", bench_on_cpu.Here)
    monkeypatch.setattr(gpu_suite, "facts", refuse)
    assert main(["--suite", "gpu"]) == 2
    assert capsys.readouterr().err == f"pycl.bench: --suite gpu cannot run: {ILLEGAL}\n"


def test_groups_and_rows_that_compile_only() -> None:
    compiling = [row for row in GPU_ROWS if gpu_suite.group_of(row) == "compile"]
    assert {(row.loss, row.size, row.dim) for row in compiling} == {
        (loss, 32768, dim) for loss in ("clip", "nt_xent") for dim in (128, 256, 512)
    }
    others = [row for row in GPU_ROWS if row not in compiling]
    assert all(row.baselines is not None and "compile" not in row.baselines for row in others)
    assert gpu_suite.compared_with(("eager", "peers"), GPU_ROWS) == others
    assert gpu_suite.compared_with(("compile",), compiling) == compiling
