# SPDX-License-Identifier: Apache-2.0
"""The suite "modifiers": every form computes the same, a modifier left out is refused, records, the page's block."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench import _one_thread  # noqa: F401  a fixture
from torch import Tensor

from pycl.bench.__main__ import main, select
from pycl.bench.measure import correctness, memory, runner
from pycl.bench.measure.cpu import Cpu
from pycl.bench.measure.runner import Plan
from pycl.bench.present import page, tables
from pycl.bench.suites.modifiers import MODIFIER_CASES
from pycl.bench.workloads import float64_reference, modifiers
from pycl.bench.workloads.modifiers import MODIFIER_WORKLOADS, Modified
from pycl.bench.workloads.registry import WORKLOADS
from pycl.bench.workloads.workload import step_of

CASES = {case.name: case for case in MODIFIER_CASES}
MODIFIERS = [name for name, workload in MODIFIER_WORKLOADS.items() if isinstance(workload, Modified)]
FAST = ("--suite", "modifiers", "--sizes", "40", "--repeats", "2", "--baselines")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of one small run."""
    folder = tmp_path_factory.mktemp("bench")
    rows = "label_table,score_mod,ada_meow,average,extremes,pair_mlp-memory"
    assert main([*FAST, "eager,official,sdpa", "--rows", rows, "--json", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def record(written: Path) -> dict[str, Any]:
    return json.loads((written / "cpu-modifiers.json").read_text())


@pytest.mark.parametrize("name", MODIFIER_WORKLOADS)
def test_every_form_computes_the_same(name: str) -> None:
    workload = MODIFIER_WORKLOADS[name]
    inputs = workload.inputs(40, 8, torch.float64)
    want = float64_reference.expected(name, inputs)
    for form in (workload.ours, workload.dense, *workload.others.values()):
        for got, exact in zip(step_of(form, inputs)(), want, strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-12)


def test_blocks_of_the_float64_answer_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = MODIFIER_WORKLOADS["Agreement"].inputs(40, 8, torch.float64)
    at_once = float64_reference.expected("Agreement", inputs)
    monkeypatch.setattr("pycl.bench.workloads.float64_modifiers.PAIRS", 7 * 40)
    for got, want in zip(float64_reference.expected("Agreement", inputs), at_once, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", MODIFIERS)
def test_a_step_without_its_modifier_has_no_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modifiers.infonce if name == "AdaMEOW" else modifiers.clip

    def left_out(x: Tensor, y: Tensor, *data: Tensor, backend: str | None = None) -> Tensor:
        return plain(x, y, backend) + sum(0 * t.sum() for t in data if t.requires_grad)

    monkeypatch.setitem(WORKLOADS, name, replace(WORKLOADS[name], ours=left_out))
    case = next(case for case in MODIFIER_CASES if case.loss == name)
    row = runner.measure(case.at(64), Plan(("eager",), 0, 1), Cpu())
    assert row["refused"].startswith("loss is off by")
    assert "time_s" not in row


@pytest.mark.parametrize("name", ["Limit", "Limit, guide"])
def test_no_rounding_decides_what_a_limit_drops(name: str) -> None:
    x, y, rows, *guide = MODIFIER_WORKLOADS[name].inputs(300, 64, torch.float32)
    g, h = (t.detach().double() for t in guide or (modifiers.LOGIT_SCALE * x, y))
    value = g @ h.T
    apart = (value - rows[:, None].double()).abs().min(1).values
    assert (apart > 1e-5 * value.abs().amax()).all()
    dropped = (value > rows[:, None]).sum(1)
    assert (dropped < modifiers.NEIGHBOURS).all()
    assert dropped.float().mean() > 1


def test_every_case_passes_the_gate() -> None:
    for case in MODIFIER_CASES:
        correctness.gate(case.at(64), "cpu")


def test_record(record: dict[str, Any]) -> None:
    *timed, memory_row = record["rows"]
    others = {"AdaMEOW": {"official"}, "pair_average": {"sdpa"}}
    for row in timed:
        assert row["refused"] is None
        assert row["wrong"] == {}
        assert set(row["time_s"]) == {"ours", "eager", "G", *others.get(row["loss"], set())}
    assert [row["backend"] for row in timed] == ["cpu", "reference", "cpu", "cpu", "cpu"]
    assert list(timed[0]["errors"]) == ["loss", "gradient 0", "gradient 1", "gradient 2"], "the table has a gradient"
    assert set(memory_row["peak_mib"]) == {"ours", "eager"}


def test_tables(record: dict[str, Any]) -> None:
    of_modifiers, ada_meow, reductions, extremes, peak = tables.tables(record)
    assert of_modifiers[0].endswith("G is our step without it; medians (quartiles)")
    assert of_modifiers[1][1:5] == ("G (ms)", "ours (ms)", "ours (G)", "eager (G)")
    assert [cells[0] for cells in of_modifiers[2]] == [
        "LabelTable 40, d = 128, float32", "score_mod 40, d = 128, float32"
    ]  # fmt: skip
    assert ada_meow[1][-2:] == ("vs eager", "vs official")
    assert reductions[1][-1] == "vs sdpa"
    assert [len(part[2]) for part in (ada_meow, reductions, extremes, peak)] == [1, 1, 1, 1]


def test_a_network_on_pairs_is_not_tried_where_its_vectors_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "free_bytes", lambda _: 3 * 64**2 * modifiers.HIDDEN * 4 - 1)
    of = {name: runner.measure(CASES[name].at(64), Plan(("eager",), 0, 1), Cpu()) for name in ("pair_mlp", "agreement")}
    assert of["pair_mlp"]["skipped"]["eager"].startswith("stores the matrix")
    assert "eager" in of["agreement"]["time_s"]


def test_memory_sees_the_vectors_of_pairs() -> None:
    case = CASES["pair_mlp-memory"].at(512)
    vectors = 512 * 512 * modifiers.HIDDEN * 4 / 2**20
    assert memory.peak(case, "eager")["peak_mib"] > 2 * vectors
    assert memory.peak(case, "ours")["peak_mib"] < vectors


def test_quick_cases_are_small() -> None:
    assert max(case.size for case in select("modifiers", None, None, quick=True)) == 2048


def test_page_block(written: Path, record: dict[str, Any]) -> None:
    path = written / "page.md"
    path.write_text("<!-- bench:modifiers -->\n<!-- /bench:modifiers -->\n")
    assert page.main([str(written / "cpu-modifiers.json"), str(path)]) == 0
    assert path.read_text().count("| row |") == 5
    assert record["command"] in path.read_text()
