# SPDX-License-Identifier: Apache-2.0
"""The suite "gpu" without a GPU: its rows, targets, peers, budget and README block; the CPU plays the device."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers.bench_on_cpu import FAKES, NAME, ROOFS, SMALL, Here
from torch import Tensor

from pycl.bench import (
    gpu,
    gpu_report,
    gpu_runner,
    gpu_suite,
    losses,
    peers,
    rows,
    runner,
    timing,
    truth,
)
from pycl.bench.__main__ import GPU_BUDGET, main
from pycl.bench.gpu_rows import GPU_ROWS
from pycl.bench.work import step_of

ROWS = {row.name: row for row in GPU_ROWS}


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens in this process, on the CPU."""
    for name, fake in FAKES.items():
        monkeypatch.setattr(gpu, name, fake)
    monkeypatch.setattr(gpu_suite, "Worker", Here)


# ---- rows and targets


def test_rows_cover_what_the_targets_speak_of() -> None:
    assert len(ROWS) == len(GPU_ROWS), "two rows share a name"
    assert {row.device for row in GPU_ROWS} == {"cuda"}
    shapes = {
        loss: {(row.size, row.dim) for row in GPU_ROWS if row.loss == loss and row.dtype == torch.bfloat16}
        for loss in ("clip", "siglip", "nt_xent")
    }
    for loss in ("clip", "nt_xent"):
        assert shapes[loss] >= {(size, dim) for size in (8192, 32768) for dim in (128, 256, 512, 1024)}
        assert shapes[loss] >= {(2**k, 256) for k in range(10, 18)}
    assert all(found >= {(32768, dim) for dim in (128, 256, 512, 768)} for found in shapes.values())
    assert (65536, 512) in shapes["clip"]
    assert (65536, 768) in shapes["siglip"]
    assert {(row.dtype, row.precision) for row in GPU_ROWS if row.dtype == torch.float32} == {
        (torch.float32, "highest"), (torch.float32, "high")
    }  # fmt: skip
    (million,) = (row for row in GPU_ROWS if row.size == 2**20)
    assert (million.measure, million.baselines, million.dim) == ("one step", (), 256)
    assert million.loss == "clip", "its answer follows from fewer points only for CLIP"
    assert million.size % gpu_runner.DISTINCT == 0


def test_targets_come_first_and_say_what_was_asked() -> None:
    with_target = [row for row in GPU_ROWS if row.target]
    assert list(GPU_ROWS[: len(with_target)]) == with_target
    said = {name: str(row.target) for name, row in ROWS.items()}
    for dim, share, memory in ((128, 65, 100), (256, 65, 100), (512, 50, 400)):
        dense = f">= {share}% of the roof, <= {memory} MB, >= 5 x eager"
        assert said[f"clip-32768-d{dim}-bf16"] == f"{dense}, >= 8 x inf-cl"
        assert said[f"nt_xent-32768-d{dim}-bf16"] == dense
        assert said[f"siglip-32768-d{dim}-bf16"] == f">= {share}% of the roof"
        for loss in ("clip", "nt_xent"):
            assert said[f"{loss}-32768-d{dim}-bf16-compile"] == ">= 3 x compile"
    assert said["clip-65536-d512-bf16"] == ">= 2 x memeff"
    assert said["siglip-65536-d768-bf16"] == ">= 1.25 x siglip-kernel"
    assert said["nt_xent-256-d256-bf16"] == "not slower than eager"


def test_a_whole_run_fits_into_the_budget() -> None:
    seconds = [gpu_suite.predicted_seconds(row, ROOFS) for row in GPU_ROWS]
    groups = len(list(itertools.groupby(GPU_ROWS, gpu_suite.group_of)))
    assert sum(seconds) + gpu_suite.START_SECONDS * groups < GPU_BUDGET
    million = seconds[[row.size for row in GPU_ROWS].index(2**20)]
    assert 3 * 8 * 2**40 * 256 / gpu_suite.PLANNED_RATE < million < 60


# ---- the float64 answer


@pytest.mark.parametrize("name", truth.FORMULAS)
def test_truth_in_blocks_is_the_dense_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "BLOCK_ENTRIES", 64 * 5)
    inputs = rows.WORKS[name].inputs(64, 8, torch.float64)
    dense = step_of(rows.WORKS[name].dense, inputs)()
    for got, want in zip(truth.expected(name, inputs), dense, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_truth_of_repeated_points() -> None:
    points = rows.WORKS["clip"].inputs(16, 8, torch.float64)
    pick = torch.randperm(64) % 16
    got = truth.repeated(truth.expected("clip", points), pick)
    for mine, want in zip(got, truth.expected("clip", [x[pick] for x in points]), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-14)


# ---- measuring


def test_extra_memory_is_beyond_what_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [torch.tensor(1.0), torch.zeros(256, 1024), *torch.zeros(2, 256, 1024).unbind()]
    assert gpu.held_bytes(answer) == 4 + 3 * 2**20, "views of the same memory were counted twice"
    fakes = {
        "synchronize": lambda: None,
        "memory_allocated": lambda: 5 * 2**20,
        "reset_peak_memory_stats": lambda: None,
    }
    fakes["max_memory_allocated"] = lambda: 10 * 2**20 + 4
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(gpu, "seconds_of", timing.once)
    found = gpu.measured(lambda: answer)
    assert found.peak_mib == pytest.approx(5)
    assert found.extra_mib == 2
    assert found.answer is answer


def as_peers(**functions: Callable[..., Tensor]) -> list[peers.Found]:
    made = {name: peers.Peer(name, name, "clip", lambda: losses.dense_clip) for name in functions}
    return [peers.Found(made[name], "1", function, None) for name, function in functions.items()]


@pytest.mark.usefixtures("cpu_as_gpu")
def test_measure() -> None:
    def fails(*_: Tensor) -> Tensor:
        raise RuntimeError("no kernel image\nlong story")

    found = as_peers(right=losses.dense_clip, wrong=lambda *views: 1.1 * losses.dense_clip(*views), fails=fails)
    row = gpu_runner.measure(SMALL, ("eager", "peers"), found, seconds=0, rounds=2)
    assert row["refused"] is None
    assert set(row["time_s"]) == {"ours", "eager", "right", "wrong"}
    assert {t["rounds"] for t in row["time_s"].values()} == {2}
    assert row["skipped"] == {"fails": "RuntimeError: no kernel image"}
    assert row["wrong"] == {"wrong": pytest.approx(0.1, rel=1e-3)}
    assert row["full_size_error"]["ours"] < gpu_runner.LIMITS["float32"]
    assert row["launches"] == {"ours": 7, "eager": 7}
    assert (row["peak_mib"]["ours"], row["extra_mib"]["ours"]) == (1.5, 1.0)


@pytest.mark.usefixtures("cpu_as_gpu")
def test_what_is_wrong_or_fails_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_beyond_the_gate(image: Tensor, text: Tensor) -> Tensor:
        return losses.dense_clip(image, text) * (1.0 if len(image) <= runner.GATE_SIZE else 1.001)

    monkeypatch.setitem(rows.WORKS, "clip", replace(rows.WORKS["clip"], ours=wrong_beyond_the_gate))
    for measure in ("time", "one step"):
        row = gpu_runner.measure(replace(SMALL, size=320, measure=measure), (), [], seconds=0, rounds=1)
        assert row["refused"] == "ours is 0.001 from float64 at size 320, limit 1e-05"
        assert "time_s" not in row
        assert gpu_report.met_text(row | {"target": asdict(rows.Goals(0.5))}, ROOFS) == "no: roof"


@pytest.mark.usefixtures("cpu_as_gpu")
def test_one_step_on_repeated_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_runner, "DISTINCT", 32)
    row = gpu_runner.measure(replace(SMALL, size=256, measure="one step"), ("eager",), [], seconds=0)
    assert row["refused"] is None
    assert set(row["time_s"]) == {"ours"}
    assert row["full_size_error"]["ours"] < gpu_runner.LIMITS["float32"]


@pytest.mark.usefixtures("cpu_as_gpu")
def test_a_matrix_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "free_bytes", lambda: 6 * 64**2 * 4 - 1)
    row = gpu_runner.measure(SMALL, ("eager", "compile", "peers"), as_peers(fused=losses.dense_clip), seconds=0)
    assert set(row["time_s"]) == {"ours", "fused"}
    assert set(row["skipped"]) == {"eager", "compile"}
    assert all(reason.startswith("stores the matrix") for reason in row["skipped"].values())


# ---- command line, record, README


def test_refuses_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--suite", "gpu"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("pycl.bench: --suite gpu cannot run: no CUDA GPU that torch can use (torch ")
    assert message.count("\n") == 1


def test_rows_without_what_they_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--suite", "gpu", "--rows", "clip*-d128*-compile", "--baselines", "eager,peers"])
    message = "--rows: clip-32768-d128-bf16-compile compares with compile alone; see --baselines"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("bad", [["--baselines", "peers"], ["--budget", "9"]])
def test_options_of_the_other_suite(bad: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(bad)


@pytest.mark.parametrize(("name", "file"), [(NAME, "nvidia-h200"), ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")])
def test_file_name(name: str, file: str) -> None:
    assert gpu.file_name(name) == file


@pytest.mark.usefixtures("cpu_as_gpu")
def test_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tuple(replace(row, device="cpu") for row in GPU_ROWS)
    monkeypatch.setattr("pycl.bench.__main__.SUITES", {"gpu": rows})
    chosen = ["--rows", "clip-32768-d256-bf16,nt_xent-1024*", "--sizes", "64,128", "--repeats", "1"]
    options = ["--suite", "gpu", *chosen, "--baselines", "eager", "--commit", "abc", "--json", str(tmp_path)]
    assert main(options) == 0
    record = json.loads((tmp_path / "nvidia-h200.json").read_text())
    assert record["commit"] == "abc"
    assert "--commit" not in record["command"]
    assert [row["size"] for row in record["rows"]] == [64, 128, 64, 128]
    assert "clip 128, d = 256, bfloat16" in capsys.readouterr().out
    assert gpu_report.table(record).count("800 TFLOP/s in bfloat16") == 1
