# SPDX-License-Identifier: Apache-2.0
"""The suite "gpu" without a GPU: its rows, targets, peers, budget and README block; the CPU plays the device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pycl.bench import gpu, gpu_plot, gpu_report, gpu_runner, losses, peers, readme, rows, runner, timing, truth
from pycl.bench.__main__ import main
from pycl.bench.gpu_rows import GPU_ROWS
from pycl.bench.work import step_of
from torch import Tensor

NAME = "NVIDIA H200"
ROOFS = {"bfloat16": 800e12, "float32": 50e12, "float32, high": 400e12, "float64": 50e12, "copy": 4.3e12}
ROWS = {row.name: row for row in GPU_ROWS}
SMALL = replace(rows.Row("clip-64", "clip", 64, 32), device="cpu")


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a GPU can tell comes from a clock and from constants."""

    def measured(step: Callable[[], Any]) -> gpu.Measured:
        return gpu.Measured(timing.once(step), 1.0, step())

    described = {"name": NAME, "memory_gib": 141, "multiprocessors": 132, "driver": "1", "cuda": "13", "triton": "3"}
    fakes = {
        "why_not": lambda: None,
        "describe": lambda: described,
        "roofs": lambda: ROOFS,
        "seconds_of": timing.once,
        "measured": measured,
        "launches": lambda step: 7,
        "host_seconds": lambda step: 1e-4,
        "free_bytes": lambda: 2**30,
        "release": lambda: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(gpu, name, fake)


def a_record(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "suite": "gpu", "command": "python -m pycl.bench --suite gpu", "timestamp": "now", "commit": "abc",
        "pycl": "0", "torch": {"version": "2"}, "python": "3", "roofs": ROOFS, "peers": {}, "not_reached": [],
        "gpu": {"name": NAME, "memory_gib": 141, "multiprocessors": 132, "driver": "1", "cuda": "13", "triton": "3"},
        "rows": rows, "sweep": [],
    } | more  # fmt: skip


def a_row(name: str, seconds: dict[str, float], mib: float = 50.0) -> dict[str, Any]:
    times = {provider: timing.Timing(t, t, t, 3)._asdict() for provider, t in seconds.items()}
    found = runner.describe(ROWS[name]) | {"backend": "triton", "time_s": times, "peak_mib": {"ours": mib}}
    return found | {"wrong": {}, "skipped": {}, "launches": {}, "host_s": {}}


# ---- rows and targets


def test_rows_cover_what_the_targets_speak_of() -> None:
    assert len(ROWS) == len(GPU_ROWS), "two rows share a name"
    assert {row.device for row in GPU_ROWS} == {"cuda"}
    for loss in ("clip", "nt_xent"):
        bf16 = {(row.size, row.dim) for row in GPU_ROWS if row.loss == loss and row.dtype == torch.bfloat16}
        assert bf16 >= {(size, dim) for size in (8192, 32768) for dim in (128, 256, 512, 1024)}
        assert bf16 >= {(2**k, 256) for k in range(10, 18)}
    assert {(row.dtype, row.precision) for row in GPU_ROWS if row.dtype == torch.float32} == {
        (torch.float32, "highest"), (torch.float32, "high")
    }  # fmt: skip
    (million,) = (row for row in GPU_ROWS if row.size == 2**20)
    assert (million.measure, million.baselines, million.dim) == ("one step", (), 256)
    assert million.loss == "clip", "its answer follows from fewer points only for CLIP"
    assert million.size % gpu_runner.DISTINCT == 0


def test_targets_come_first_and_say_what_was_asked() -> None:
    reached = [row for row in GPU_ROWS if row.size == 32768 and row.target]
    assert list(GPU_ROWS[: len(reached)]) == reached
    clip, nt_xent = (str(ROWS[f"{loss}-32768-d512-bf16"].target) for loss in ("clip", "nt_xent"))
    assert clip == ">= 50% of the roof, <= 100 MB, >= 5 x eager, >= 3 x compile, >= 8 x inf-cl"
    assert nt_xent == clip.removesuffix(", >= 8 x inf-cl")
    assert str(ROWS["nt_xent-256-d256-bf16"].target) == "not slower than eager"


def test_a_whole_run_fits_into_the_budget() -> None:
    seconds = [gpu_runner.predicted_seconds(row, ROOFS) for row in GPU_ROWS]
    assert sum(seconds) < 480
    million = seconds[[row.size for row in GPU_ROWS].index(2**20)]
    assert 3 * 8 * 2**40 * 256 / gpu_runner.PLANNED_RATE < million < 60


@pytest.mark.parametrize(("loss", "least"), [("clip", 8), ("nt_xent", 4), ("mv_dhel", 16)])
def test_floor(loss: str, least: int) -> None:
    row = rows.Row("any", loss, 1000, 10)
    assert row.floor_flop == least * 1000**2 * 10
    floor = gpu_report.floor_seconds({"floor_flop": 800e12, "floor_bytes": 0, "format": "bfloat16"}, ROOFS)
    assert floor == pytest.approx(1.0)


def test_share_of_roof_and_what_is_met() -> None:
    name = "clip-32768-d256-bf16"
    floor = 8 * 32768**2 * 256 / ROOFS["bfloat16"]
    fast = {"ours": 2 * floor, "eager": 10 * floor, "compile": 6 * floor, "inf-cl": 16 * floor}
    row = a_row(name, fast, mib=100e6 / 2**20)
    assert gpu_report.share_of_roof(row, ROOFS) == pytest.approx(0.5)
    assert gpu_report.met_text(row, ROOFS) == "yes"
    slow = a_row(name, fast | {"ours": 2.1 * floor}, mib=100e6 / 2**20 + 1)
    assert gpu_report.met_text(slow, ROOFS) == "no: roof, memory, eager, compile, inf-cl"
    alone = a_row(name, {"ours": 2 * floor, "eager": 20 * floor})
    assert gpu_report.met_text(alone, ROOFS) == "yes, compile, inf-cl not measured"
    assert set(gpu_report.parts_met(alone | {"refused": "wrong"}, ROOFS).values()) == {False}
    assert gpu_report.met_text(a_row("mv_dhel-8192-d256-bf16", {"ours": 1.0}), ROOFS) == "-"


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


@pytest.mark.usefixtures("cpu_as_gpu")
def test_budget_takes_rows_in_order_and_lists_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"a": 1.0, "too long": 1e6, "b": 1.0}
    monkeypatch.setattr(gpu_runner, "predicted_seconds", lambda row, roofs: needs[row.name])
    rows = [replace(SMALL, name=name) for name in needs]
    record: dict[str, Any] = {"rows": []}
    gpu_runner.run(record, rows, ("eager",), budget=60.0, seconds=0, rounds=1)
    assert [row["name"] for row in record["rows"]] == ["a", "b"]
    (missed,) = record["not_reached"]
    assert missed["name"] == "too long"
    assert missed["reason"].startswith("needs about 1000000 s")
    late = gpu_runner.measure(SMALL, ("eager",), [], seconds=0, rounds=1, stop=0.0)
    assert late["skipped"] == {"eager": "the time was up"}
    assert set(late["time_s"]) == {"ours"}


# ---- command line, record, README


def test_refuses_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--suite", "gpu"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("pycl.bench: --suite gpu cannot run: no CUDA GPU that torch can use (torch ")
    assert message.count("\n") == 1


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


def a_readme(folder: Path, record: dict[str, Any] | None) -> str:
    (folder / "bench" / "results").mkdir(parents=True)
    if record:
        (folder / "bench" / "results" / "nvidia-h200.json").write_text(json.dumps(record))
    path = folder / "README.md"
    path.write_text("before\n<!-- bench:gpu -->\nold\n<!-- /bench:gpu -->\nafter\n")
    assert readme.main([str(path)]) == 0
    text = path.read_text()
    assert text.startswith("before\n<!-- bench:gpu -->\n")
    assert text.endswith("\n<!-- /bench:gpu -->\nafter\n")
    assert "old" not in text
    return text


def test_readme_without_a_record(tmp_path: Path) -> None:
    cells = [line.strip("| ").split(" | ") for line in a_readme(tmp_path, None).splitlines() if line.startswith("| ")]
    _, _, *rows = cells
    assert len(rows) == sum(row.target is not None for row in GPU_ROWS) + 1
    for _, *figures, _, met in rows:
        assert set(figures) <= {"not measured", "-"}
        assert figures[:4] == ["not measured"] * 4
        assert met in ("not measured", "-")
    assert not (tmp_path / "docs").exists()


def test_readme_with_a_record(tmp_path: Path) -> None:
    times = {"ours": 4e-3, "eager": 30e-3, "inf-cl": 80e-3}
    rows = [a_row("clip-32768-d256-bf16", times), a_row("clip-8192-d256-bf16", {"ours": 1e-3, "eager": 2e-3})]
    rows[0]["wrong"] = {"inf-cl": 0.02}
    missed = runner.describe(ROWS["nt_xent-32768-d256-bf16"]) | {"reason": "needs about 9 s, 1 s of 480 s were left"}
    absent = {"lightly": {"version": None, "why_not": "not installed"}}
    text = a_readme(tmp_path, a_record(rows, not_reached=[missed], peers=absent))
    assert f"**{NAME}**" in text
    assert "| clip 32768, d = 256, bfloat16 | 4 (4-4) | 2.75 | 69% | 52.4 | 7.5 x | not measured | 20.0 x |" in text
    assert "| yes, compile not measured |" in text
    assert "| clip 8192, d = 256, bfloat16 | 1 (1-1) | 0.172 | 17% | 52.4 | 2.0 x | - | - |\n" in text
    assert "| nt_xent 32768, d = 256, bfloat16 | not measured | not measured |" in text
    assert "80 (off by 0.02)" in text
    assert "not reached: nt_xent 32768, d = 256, bfloat16, needs about 9 s" in text
    assert "peer lightly: not installed" in text
    picture = "docs/images/gpu-nvidia-h200.png"
    assert f"({picture})" in text
    assert (tmp_path / picture).stat().st_size > 10_000


def test_plot_needs_two_sizes(tmp_path: Path) -> None:
    assert gpu_plot.draw(a_record([a_row("clip-8192-d256-bf16", {"ours": 1e-3})]), tmp_path) is None
