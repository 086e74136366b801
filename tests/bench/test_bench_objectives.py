# SPDX-License-Identifier: Apache-2.0
"""The suite "objectives": what is timed is the objective, with gradients of all that is no constant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_bench import _one_thread  # noqa: F401  a fixture

from pycl.bench.__main__ import main, select
from pycl.bench.present import page
from pycl.bench.suites.objectives import OBJECTIVE_CASES
from pycl.bench.workloads.objectives import OBJECTIVE_WORKLOADS, drawn
from pycl.bench.workloads.workload import step_of

WORKLOADS = pytest.mark.parametrize("name", OBJECTIVE_WORKLOADS)


@WORKLOADS
def test_both_forms_compute_the_same(name: str) -> None:
    workload = OBJECTIVE_WORKLOADS[name]
    inputs = workload.inputs(23, 8, torch.float64)
    for got, want in zip(step_of(workload.ours, inputs)(), step_of(workload.dense, inputs)(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@WORKLOADS
def test_all_but_constants_and_integers_get_a_gradient(name: str) -> None:
    row = OBJECTIVE_WORKLOADS[name].row
    tensors, _ = drawn(row, 12, 4)
    inputs = OBJECTIVE_WORKLOADS[name].inputs(12, 4, torch.float32)
    for what, x in zip(tensors, inputs, strict=True):
        constant = what.partition("[")[0] in row.constants
        assert x.requires_grad == (x.is_floating_point() and not constant), what


def test_every_objective_has_its_cases() -> None:
    names = {case.name for case in OBJECTIVE_CASES}
    assert names == {f"{name}{form}" for name in OBJECTIVE_WORKLOADS for form in ("", "-512", "-memory")}
    assert {case.size for case in select("objectives", ["*-memory"], None, quick=False)} == {16384}


def test_a_run_and_its_block_of_the_page(tmp_path: Path) -> None:
    rows = "meow,amcl,mvcnet,score_statistics,proto_nce-memory"
    options = ["--suite", "objectives", "--sizes", "40", "--repeats", "2", "--baselines", "eager"]
    assert main([*options, "--rows", rows, "--json", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "cpu-objectives.json").read_text())
    assert [row["refused"] for row in record["rows"]] == [None] * 5
    shown = tmp_path / "page.md"
    shown.write_text("<!-- bench:objectives -->\n<!-- /bench:objectives -->\n")
    assert page.main([str(tmp_path / "cpu-objectives.json"), str(shown)]) == 0
    assert "| meow 40, d = 128, float32 |" in shown.read_text()
