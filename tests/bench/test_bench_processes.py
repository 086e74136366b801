# SPDX-License-Identifier: Apache-2.0
"""A run of the suite "gpu" keeps what it has measured, whatever a process of it does."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
from helpers import bench_on_cpu
from helpers.bench_on_cpu import ABORTS, BREAKS, EXITS, ILLEGAL, NAME, SMALL, Deadly, Played, Unusable

from pycl.bench.__main__ import main
from pycl.bench.measure import runner, suite
from pycl.bench.measure.runner import Circumstances, Plan
from pycl.bench.measure.worker import Died, Process
from pycl.bench.present import tables
from pycl.bench.suites.gpu import GPU_CASES


def test_what_dies_is_left_out_and_the_rest_is_kept() -> None:
    dims = {"first": 32, "ours exits": EXITS, "a peer aborts": ABORTS, "a peer breaks the GPU": BREAKS, "last": 32}
    cases = [replace(SMALL, name=name, dim=dim) for name, dim in dims.items()]
    record: dict[str, Any] = {"rows": []}
    kept: list[int] = []
    suite.run(
        record,
        cases,
        Plan(("eager", "peers"), 0, 1),
        Deadly(),
        budget=900,
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
    assert f"REFUSED {cases[1].label}: its process ended: exit status 3" in tables.remarks(record | {"sweep": []})


def test_a_process_that_does_not_answer_is_ended() -> None:
    worker = Process()
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


def test_budget_takes_cases_in_order_and_lists_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"a": 1.0, "too long": 1e6, "b": 1.0}
    monkeypatch.setattr(suite, "predicted_seconds", lambda case, rates: needs[case.name])
    cases = [replace(SMALL, name=name) for name in needs]
    record: dict[str, Any] = {"rows": []}
    suite.run(record, cases, Plan(("eager",), 0, 1), Played(), budget=60.0)
    assert [row["name"] for row in record["rows"]] == ["a", "b"]
    (missed,) = record["not_reached"]
    assert missed["name"] == "too long"
    assert missed["reason"].startswith("needs about 1000000 s")
    late = runner.measure(SMALL, Plan(("eager",), 0, 1), Played(), given=Circumstances(stop=0.0))
    assert late["skipped"] == {"eager": "the time was up"}
    assert set(late["time_s"]) == {"ours"}


def test_a_gpu_that_cannot_be_used_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(suite.DEVICES, "cuda", Unusable())
    assert main(["--suite", "gpu"]) == 2
    assert capsys.readouterr().err == f"pycl.bench: --suite gpu cannot run: {ILLEGAL}\n"


def test_groups_and_cases_that_compile_only() -> None:
    compiling = [case for case in GPU_CASES if suite.group_of(case) == "compile"]
    assert {(case.loss, case.size, case.dim) for case in compiling} == {
        (loss, 32768, dim) for loss in ("clip", "nt_xent") for dim in (128, 256, 512)
    }
    others = [case for case in GPU_CASES if case not in compiling]
    assert all(case.baselines is not None and "compile" not in case.baselines for case in others)
    assert suite.compared_with(("eager", "peers"), GPU_CASES) == others
    assert suite.compared_with(("compile",), compiling) == compiling
