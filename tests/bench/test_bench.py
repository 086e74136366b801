# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, refuse wrong answers, and write the page's tables."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.bench.__main__ import main, select
from pycl.bench.measure import correctness, memory, runner, timing
from pycl.bench.measure.cpu import Cpu
from pycl.bench.measure.runner import Plan
from pycl.bench.present import page, tables
from pycl.bench.present.text import text
from pycl.bench.suites.case import Case
from pycl.bench.suites.losses import LOSS_CASES
from pycl.bench.workloads import losses
from pycl.bench.workloads.registry import WORKLOADS
from pycl.core import precision

ROOT = Path(__file__).parent.parent.parent
TIMED = "clip-d128,clip-d512-medium,clip-d128-bf16,nt_xent-256,mv_dhel-v4"
FAST = ("--quick", "--sizes", "64", "--repeats", "2", "--baselines", "eager")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine would take most of the time here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record and the CSV lines of one small run."""
    folder = tmp_path_factory.mktemp("bench")
    outputs = ("--json", str(folder / "record.json"), f"--csv={folder / 'lines.csv'}")
    assert main([*FAST, "--rows", f"{TIMED},clip-65536", *outputs]) == 0
    return folder


@pytest.fixture(scope="module")
def record(written: Path) -> dict[str, Any]:
    return json.loads((written / "record.json").read_text())


def test_record(record: dict[str, Any]) -> None:
    assert record["command"] == f"python -m pycl.bench {' '.join(FAST)} --rows {TIMED},clip-65536"
    assert record["torch"]["version"] == torch.__version__
    assert record["threads"]["count"] == torch.get_num_threads()
    *timed, memory_row = record["rows"]
    assert [row["name"] for row in timed] == TIMED.split(",")
    for row in timed:
        assert row["refused"] is None
        assert set(row["errors"]) == {"loss", *(f"gradient {i}" for i in range(4 if row["loss"] == "mv_dhel" else 2))}
        assert set(row["time_s"]) == {"ours", "eager", "G"}
        for t in row["time_s"].values():
            assert 0 < t["q1"] <= t["median"] <= t["q3"]
            assert t["rounds"] == 2
    assert memory_row["peak_mib"]["ours"] < 32
    assert memory_row["seconds"]["ours"] > 0


def test_record_names_no_path(record: dict[str, Any], written: Path) -> None:
    found = json.dumps(record)
    assert str(Path.cwd()) not in found
    assert str(written) not in found


def test_table(record: dict[str, Any]) -> None:
    lines = text(record).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("row "))
    assert head > 0
    assert len({len(line) for line in lines[head : head + 2 + 5]}) == 1, "columns are not aligned"
    assert any(line.startswith("mv_dhel 4 x 64, d = 128, float32") for line in lines)


def test_csv(record: dict[str, Any], written: Path) -> None:
    with (written / "lines.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * 3 + 2  # three providers a timed row, two the memory row
    assert {line["metric_unit"] for line in lines} == {"ms", "MiB"}
    assert all(float(line["y_value_50"]) >= 0 for line in lines)


def test_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(case: Case, provider: str) -> dict[str, float]:
        return {"peak_mib": case.size**2 / 1000 if provider == "eager" else case.size / 1000, "seconds": 0.0}

    monkeypatch.setattr(memory, "peak", peak)
    monkeypatch.setattr(Cpu, "free_bytes", lambda _: 100 * 2**20)
    outputs = ("--json", str(tmp_path / "record.json"), "--plot", str(tmp_path / "plots"))
    assert main([*FAST, "--rows", "clip-d128", "--sizes", "512,64,128,256", *outputs]) == 0
    swept = json.loads((tmp_path / "record.json").read_text())["sweep"]
    assert [row["size"] for row in swept] == [64, 128, 256, 512]
    fits = [row["size"] for row in swept if "eager" in row["time_s"]]
    assert fits == [row["size"] for row in swept if "eager" in row["peak_mib"]] == [64, 128, 256]
    assert (tmp_path / "plots" / "clip-d128.png").stat().st_size > 10_000


def wrong_value(image: Tensor, text: Tensor) -> Tensor:
    return losses.dense_clip(image, text) * 1.001


def wrong_gradient(image: Tensor, text: Tensor) -> Tensor:
    return losses.dense_clip(image, text.detach() + 0 * text)


def not_a_number(image: Tensor, text: Tensor) -> Tensor:
    return losses.dense_clip(image, text) * torch.nan


def wrong_at_full_size(image: Tensor, text: Tensor) -> Tensor:
    return losses.dense_clip(image, text) * (1.0 if len(image) <= correctness.GATE_SIZE else 1.1)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (wrong_value, "loss is off by"),
        (wrong_gradient, "gradient 1 is off by"),
        (not_a_number, "loss is off by inf"),
        (wrong_at_full_size, "ours is 0.1 from float64 at size 320"),
    ],
)
def test_wrong_answer_has_no_time(
    wrong: Callable[..., Tensor], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WORKLOADS, "clip", replace(WORKLOADS["clip"], ours=wrong))
    assert main(["--rows", "clip-d128", "--sizes", "320", "--repeats", "1", "--baselines", "eager"]) == 1
    printed = capsys.readouterr().out
    assert f"REFUSED clip 320, d = 128, float32: {what}" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("clip 320"))
    assert line.split()[6:] == ["refused"] * 3, "a cell of a refused row is not refused"


def test_every_case_passes_the_gate() -> None:
    for case in LOSS_CASES:
        with correctness.matmul_precision(case.precision):
            correctness.gate(case.at(64), "cpu")


def test_precision_is_as_before_under_either_switch() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with correctness.matmul_precision("highest"):
            assert precision.of_cuda() == "highest"
        assert precision.of_cuda() == "high"
        torch.backends.cuda.matmul.fp32_precision = "ieee"  # after this the former switch cannot be read
        with correctness.matmul_precision("medium"):
            assert precision.of_cpu() == "medium"
        assert (precision.of_cpu(), precision.of_cuda()) == ("highest", "highest")
    finally:
        torch.set_float32_matmul_precision("highest")


def measured(*baselines: str) -> dict[str, Any]:
    return runner.measure(LOSS_CASES[0].at(64), Plan(baselines, 0, 1), Cpu())


def test_compiled_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)  # compiling takes longer than all other tests here
    row = measured("eager", "compile")
    assert {"compile", "eager"} <= set(row["first_call_s"]) & set(row["time_s"])


def test_baseline_that_fails_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Tensor) -> Tensor:
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", lambda function: no_compiler)
    row = measured("eager", "compile")
    assert "compile" not in row["time_s"]
    assert row["skipped"] == {"compile": "RuntimeError: no C++ compiler"}


def test_a_matrix_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "free_bytes", lambda _: runner.DENSE_COPIES * 64**2 * 4 - 1)
    assert measured("eager")["skipped"]["eager"].startswith("stores the matrix")


def test_select() -> None:
    assert select("losses", None, None, quick=False) == list(LOSS_CASES)
    assert max(case.size for case in select("losses", None, None, quick=True)) < 20_000
    assert {case.loss for case in select("losses", ["nt_xent*"], None, quick=False)} == {"nt_xent"}
    assert [case.size for case in select("losses", ["clip-d128"], [8, 16], quick=False)] == [8, 16]


@pytest.mark.parametrize("bad", [["--rows", "nothing"], ["--sizes", "1"], ["--baselines", "numpy"], ["--suite", "x"]])
def test_bad_arguments(bad: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(bad)


def test_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    steps = {name: partial(order.append, name) for name in "ab"}
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.0)
    times = timing.interleaved(steps, seconds=0, rounds=4)
    assert "".join(order) == "abababab", "providers do not take turns"
    assert {t.rounds for t in times.values()} == {4}
    order.clear()
    timing.interleaved(steps, seconds=0)
    assert len(order) == 2 * timing.MIN_ROUNDS


def test_short_steps_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.05)
    order: list[str] = []
    slow, fast = partial(time.sleep, 0.06), partial(order.append, "fast")
    times = timing.interleaved({"slow": slow, "fast": fast}, seconds=0, rounds=2)
    assert len(order) > 100
    assert times["slow"].median > 0.05 > times["fast"].median
    assert times["slow"].rounds == times["fast"].rounds == 2


def test_quartiles() -> None:
    assert timing.Timing.of([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0, 4.0, 5)
    assert timing.Timing.of([2.0]) == (2.0, 2.0, 2.0, 1)


def test_memory_sees_the_matrix() -> None:
    matrix = 1024 * 1024 * 4 / 2**20
    assert 2 * matrix < memory.peak(LOSS_CASES[0].at(1024), "eager")["peak_mib"] < 16 * matrix


def test_memory_of_a_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCL_BACKEND", "abacus")
    with pytest.raises(memory.Failed, match="abacus"):
        memory.peak(LOSS_CASES[0].at(64), "ours")


def test_page(record: dict[str, Any], written: Path) -> None:
    path = written / "page.md"
    path.write_text("before\n<!-- bench:losses -->\nold\n<!-- /bench:losses -->\nafter\n")
    assert page.main([str(written / "record.json"), str(path)]) == 0
    once = path.read_text()
    assert once.startswith("before\n<!-- bench:losses -->\n")
    assert once.endswith("\n<!-- /bench:losses -->\nafter\n")
    assert "old" not in once
    lines = [line for line in once.splitlines() if line.startswith("|")]
    assert len(lines) == len(record["rows"]) + 2 * 2
    assert {line.count("|") for line in lines} == {len(columns) + 1 for _, columns, _ in tables.tables(record)}
    assert record["command"] in once
    page.main([str(written / "record.json"), str(path)])
    assert path.read_text() == once


@pytest.mark.parametrize("before", ["", "<!-- bench:losses -->", "<!-- /bench:losses --> <!-- bench:losses -->"])
def test_page_without_its_block(before: str) -> None:
    with pytest.raises(ValueError, match="bench:losses"):
        page.rewrite(before, "losses", "tables")


def test_the_page_of_the_project_is_what_its_records_say() -> None:
    path = ROOT / "docs" / "benchmarks.md"
    if not path.exists():
        pytest.skip("runs in a checkout")
    records = [json.loads(file.read_text()) for file in page.results_of(path)]
    assert {record["suite"] for record in records} >= {"losses", "sinkhorn", "dropins"}
    assert page.written(path.read_text(), records, path.parent, gpu=True) == path.read_text()
