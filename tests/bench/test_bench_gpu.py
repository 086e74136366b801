# SPDX-License-Identifier: Apache-2.0
"""The suite "gpu" without a GPU: its cases, the float64 answer, peers, budget; the CPU plays the device."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bench_on_cpu import CASES, NAME, RATES, SMALL, Played
from torch import Tensor

from pycl.bench.__main__ import GPU_BUDGET, main
from pycl.bench.measure import correctness, gpu, runner, suite, timing
from pycl.bench.measure.gpu import Gpu
from pycl.bench.measure.runner import Plan
from pycl.bench.present.record import stem
from pycl.bench.present.text import text
from pycl.bench.suites.gpu import GPU_CASES
from pycl.bench.workloads import baselines, float64_reference, losses
from pycl.bench.workloads.registry import WORKLOADS
from pycl.bench.workloads.workload import step_of


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.DEVICES, "cuda", Played())


# ---- cases


def test_cases_cover_what_others_publish_and_more() -> None:
    assert len(CASES) == len(GPU_CASES), "two cases share a name"
    assert {case.device for case in GPU_CASES} == {"cuda"}
    shapes = {
        loss: {(case.size, case.dim) for case in GPU_CASES if case.loss == loss and case.dtype == torch.bfloat16}
        for loss in ("clip", "siglip", "nt_xent")
    }
    for loss in ("clip", "nt_xent"):
        assert shapes[loss] >= {(size, dim) for size in (8192, 32768) for dim in (128, 256, 512, 1024)}
        assert shapes[loss] >= {(2**k, 256) for k in range(10, 18)}
    assert all(found >= {(32768, dim) for dim in (128, 256, 512, 768)} for found in shapes.values())
    assert (65536, 512) in shapes["clip"]
    assert (65536, 768) in shapes["siglip"]
    assert {(case.dtype, case.precision) for case in GPU_CASES if case.dtype == torch.float32} == {
        (torch.float32, "highest"), (torch.float32, "high")
    }  # fmt: skip
    (million,) = (case for case in GPU_CASES if case.size == 2**20)
    assert (million.measure, million.baselines, million.dim) == ("one step", (), 256)
    assert million.loss == "clip", "its answer follows from fewer points only for CLIP"
    assert million.size % runner.DISTINCT == 0


def test_what_matters_most_comes_first() -> None:
    first = [case for case in GPU_CASES[:22] if (case.size, case.dim) == (32768, 256)]
    assert [(case.loss, case.baselines) for case in first] == [
        ("clip", ("eager", "peers")),
        ("siglip", ("eager", "peers")),
        ("nt_xent", ("eager", "peers")),
        ("clip", ("compile",)),
        ("nt_xent", ("compile",)),
    ]


def test_every_format_has_a_gate_and_a_limit() -> None:
    for case in GPU_CASES:
        assert case.format in correctness.FLOOR
        assert case.format in Gpu.limits
        assert case.format in RATES


def test_a_whole_run_fits_into_the_budget() -> None:
    seconds = [suite.predicted_seconds(case, RATES) for case in GPU_CASES]
    groups = len(list(itertools.groupby(GPU_CASES, suite.group_of)))
    assert sum(seconds) + suite.START_SECONDS * groups < GPU_BUDGET
    million = seconds[[case.size for case in GPU_CASES].index(2**20)]
    assert 3 * 8 * 2**40 * 256 / suite.PLANNED_RATE < million < 60


# ---- the float64 answer


@pytest.mark.parametrize("name", float64_reference.IN_BLOCKS)
def test_truth_in_blocks_is_the_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = WORKLOADS[name].inputs(64, 8, torch.float64)
    formula = float64_reference.FORMULAS.get(name, WORKLOADS[name].dense)
    want = step_of(formula, inputs)()
    monkeypatch.setattr(float64_reference, "BLOCK_ENTRIES", 64 * 5)
    monkeypatch.setattr(float64_reference, "FORMULA_ROWS", 0)
    for got, true in zip(float64_reference.expected(name, inputs), want, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-12, atol=1e-14)


def test_truth_of_repeated_points() -> None:
    points = WORKLOADS["clip"].inputs(16, 8, torch.float64)
    pick = torch.randperm(64) % 16
    got = float64_reference.repeated(float64_reference.expected("clip", points), pick)
    for mine, want in zip(got, float64_reference.expected("clip", [x[pick] for x in points]), strict=True):
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
    monkeypatch.setattr(Gpu, "clock", lambda _, step: timing.once(step))
    found = Gpu().look(lambda: answer)
    assert found.memory == {"peak_mib": pytest.approx(5), "extra_mib": 2}
    assert found.answer is answer


def measured(*names: str, peers: Any = (), rounds: int | None = None, **change: Any) -> dict[str, Any]:
    return runner.measure(replace(SMALL, **change), Plan(names, 0, rounds), Played(), peers)


def as_peers(**functions: Callable[..., Tensor]) -> list[baselines.Found]:
    made = {name: baselines.Peer(name, name, "clip", lambda: losses.dense_clip) for name in functions}
    return [baselines.Found(made[name], "1", function, None) for name, function in functions.items()]


def test_measure() -> None:
    def fails(*_: Tensor) -> Tensor:
        raise RuntimeError("no kernel image\nlong story")

    peers = as_peers(right=losses.dense_clip, wrong=lambda *views: 1.1 * losses.dense_clip(*views), fails=fails)
    row = measured("eager", "peers", peers=peers, rounds=2)
    assert row["refused"] is None
    assert set(row["time_s"]) == {"ours", "eager", "right", "wrong"}
    assert {t["rounds"] for t in row["time_s"].values()} == {2}
    assert row["skipped"] == {"fails": "RuntimeError: no kernel image"}
    assert row["wrong"] == {"wrong": pytest.approx(0.1, rel=1e-3)}
    assert row["full_size_error"]["ours"] < Gpu.limits["float32"]
    assert row["launches"] == {"ours": 7, "eager": 7}
    assert (row["peak_mib"]["ours"], row["extra_mib"]["ours"]) == (1.5, 1.0)


def test_what_is_slow_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Played, "slow", 0.0)
    row = measured("eager", rounds=3)
    assert {name: t["rounds"] for name, t in row["time_s"].items()} == {"ours": 3, "eager": 1}


def test_what_is_wrong_or_fails_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_beyond_the_gate(image: Tensor, text: Tensor) -> Tensor:
        return losses.dense_clip(image, text) * (1.0 if len(image) <= correctness.GATE_SIZE else 1.001)

    monkeypatch.setitem(WORKLOADS, "clip", replace(WORKLOADS["clip"], ours=wrong_beyond_the_gate))
    for measure in ("time", "one step"):
        row = measured(size=320, measure=measure)
        assert row["refused"] == "ours is 0.001 from float64 at size 320, limit 1e-05"
        assert "time_s" not in row


def test_one_step_on_repeated_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "DISTINCT", 32)
    row = measured("eager", size=256, measure="one step")
    assert row["refused"] is None
    assert set(row["time_s"]) == {"ours"}
    assert row["full_size_error"]["ours"] < Gpu.limits["float32"]


def test_a_matrix_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Played, "free_bytes", lambda _: 6 * 64**2 * 4 - 1)
    row = measured("eager", "compile", "peers", peers=as_peers(fused=losses.dense_clip))
    assert set(row["time_s"]) == {"ours", "fused"}
    assert set(row["skipped"]) == {"eager", "compile"}
    assert all(reason.startswith("stores the matrix") for reason in row["skipped"].values())


# ---- command line, record


def test_refuses_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--suite", "gpu"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("pycl.bench: --suite gpu cannot run: no CUDA GPU that torch can use (torch ")
    assert message.count("\n") == 1


def test_cases_without_what_they_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--suite", "gpu", "--rows", "clip*-d128*-compile", "--baselines", "eager,peers"])
    message = "--rows: clip-32768-d128-bf16-compile compares with compile alone; see --baselines"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("bad", [["--baselines", "official"], ["--budget", "9"]])
def test_options_of_the_other_suite(bad: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(bad)


@pytest.mark.parametrize(("name", "file"), [(NAME, "nvidia-h200"), ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")])
def test_file_name(name: str, file: str) -> None:
    assert stem({"suite": "gpu", "gpu": {"name": name}}) == file


@pytest.mark.usefixtures("cpu_as_gpu")
def test_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--rows", "clip-32768-d256-bf16,nt_xent-1024*", "--sizes", "64,128", "--repeats", "1"]
    options = ["--suite", "gpu", *chosen, "--baselines", "eager", "--commit", "abc", "--json", str(tmp_path)]
    assert main(options) == 0
    record = json.loads((tmp_path / "nvidia-h200.json").read_text())
    assert record["commit"] == "abc"
    assert "--commit" not in record["command"]
    assert [row["size"] for row in record["rows"]] == [64, 128, 64, 128]
    assert "clip 128, d = 256, bfloat16" in capsys.readouterr().out
    assert text(record).count("800 TFLOP/s in bfloat16") == 1
