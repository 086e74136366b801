# SPDX-License-Identifier: Apache-2.0
"""The suite "sinkhorn": its contestants, what is wrong says so, records, the page's block, and its GPU cases."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench import _one_thread  # noqa: F401  a fixture
from torch import Tensor

from pycl.backends import registry
from pycl.bench.__main__ import main, select
from pycl.bench.measure import correctness, memory, runner, suite
from pycl.bench.measure.cpu import Cpu
from pycl.bench.measure.gpu import Gpu
from pycl.bench.measure.runner import Plan
from pycl.bench.present import figures, page, tables
from pycl.bench.suites.gpu import GPU_CASES
from pycl.bench.suites.sinkhorn import SINKHORN_CASES
from pycl.bench.workloads import baselines, float64_reference, sinkhorn
from pycl.bench.workloads.modifiers import MODIFIER_WORKLOADS
from pycl.bench.workloads.objectives import OBJECTIVE_WORKLOADS
from pycl.bench.workloads.registry import FORMS as ALL_FORMS
from pycl.bench.workloads.registry import WORKLOADS
from pycl.bench.workloads.workload import step_of

CASES = {case.name: case for case in SINKHORN_CASES}
STORED = WORKLOADS["sinkhorn"]
FORMS = {"eager": STORED.dense, **STORED.others}
FAST = ("--suite", "sinkhorn", "--sizes", "32", "--repeats", "2", "--baselines")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record and the CSV lines of one small run."""
    folder = tmp_path_factory.mktemp("bench")
    chosen = ("--rows", "sinkhorn-64,sinkhorn-fp16,swav,potentials,sinkhorn-memory")
    assert main([*FAST, ",".join(ALL_FORMS), *chosen, "--json", str(folder), f"--csv={folder / 'lines.csv'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def record(written: Path) -> dict[str, Any]:
    return json.loads((written / "cpu-sinkhorn.json").read_text())


# ---- contestants


@pytest.mark.parametrize("name", FORMS)
def test_forms_compute_the_codes(name: str) -> None:
    inputs = STORED.inputs(40, 30, torch.float64)
    (want,) = float64_reference.expected("sinkhorn", inputs)
    close = {"rtol": 1e-4, "atol": 1e-6} if name == "dinov2" else {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(FORMS[name](*inputs).double(), want, **close)
    torch.testing.assert_close(want.sum(1), torch.ones(40, dtype=torch.float64))


def test_scores_reach_what_overflows() -> None:
    (scores,) = STORED.inputs(256, 300, torch.float16)
    assert 0.6 < scores.max() <= 1
    overflowing = {name for name, form in FORMS.items() if not form(scores).isfinite().all()}
    assert overflowing == {"eager", "scaling"}


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in OBJECTIVE_WORKLOADS])
def test_every_workload_has_a_dense_form_that_is_right(name: str) -> None:
    workload = WORKLOADS[name]
    inputs = workload.inputs(16, 8, torch.float64)
    for got, want in zip(step_of(workload.dense, inputs)(), float64_reference.expected(name, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    asked = [x.requires_grad for x in inputs]
    assert asked[:2] == [workload.backward] * len(asked[:2]), "points without a gradient, or with one too many"
    assert all(asked) == workload.backward or name in MODIFIER_WORKLOADS, "labels and limits alone have none"


def test_every_case_passes_the_gate() -> None:
    for case in SINKHORN_CASES:
        correctness.gate(case.at(16), "cpu")


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
    (_, columns, cells), *_ = tables.tables(record)
    fp16 = dict(zip(columns, next(row for row in cells if "float16" in row[0]), strict=True))
    assert fp16["vs eager"].endswith(" x (not finite)")
    assert "(" not in fp16["vs dinov2"]
    assert figures.marked("2.0 x", 0.06) == "2.0 x (off by 0.06)"


def test_a_wrong_answer_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(scores: Tensor, backend: str | None = None) -> Tensor:
        return sinkhorn.published(scores - scores.amax(1, keepdim=True))

    monkeypatch.setitem(WORKLOADS, "sinkhorn", replace(STORED, ours=shifted))
    row = runner.measure(CASES["sinkhorn-64"].at(32), Plan(("eager",), 0, 1), Cpu())
    assert row["refused"].startswith("codes is off by")
    assert "time_s" not in row


def test_tables_of_a_suite(record: dict[str, Any]) -> None:
    stored, implicit, peak = tables.tables(record)
    assert stored[0].startswith("Codes of stored scores, 3 iterations, forward; eager is the published iteration")
    assert stored[0].endswith("G is one copy of the scores; medians (quartiles)")
    assert stored[1][4:] == ("vs eager", "vs dinov2", "vs scaling", "vs log")
    assert implicit[1][4:] == ("eager (G)", "vs eager")
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
    monkeypatch.setattr(memory, "peak", lambda case, provider: {"peak_mib": case.size / 10, "seconds": 0.0})
    assert main([*FAST, "eager", "--rows", "sinkhorn-64", "--sizes", "16,32", "--plot", str(tmp_path)]) == 0
    assert (tmp_path / "sinkhorn-64.png").stat().st_size > 10_000


def test_dense_memory_grows_with_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak", lambda case, provider: {"peak_mib": float(case.size), "seconds": 0.0})
    found = memory.measure(CASES["sinkhorn-memory"].at(3 * memory.EAGER_SIZE), ("eager",))
    assert found["peak_mib"]["eager"] == 3 * memory.EAGER_SIZE


def test_memory_counts_the_codes() -> None:
    case = CASES["sinkhorn-memory"].at(1024)
    assert memory.peak(case, "ours")["peak_mib"] > 0.9 * case.matrix_bytes / 2**20


# ---- cases, command line


def test_quick_makes_no_case_larger() -> None:
    quick = {case.name: case.size for case in select("sinkhorn", None, None, quick=True)}
    assert quick["sinkhorn-64"] == 64
    assert quick["sinkhorn"] == 512


def test_peers_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.6.0")
    peer = baselines.Peer("lightly", "lightly", "sinkhorn", lambda: sinkhorn.published)
    monkeypatch.setattr(baselines, "PEERS", (peer, replace(peer, loss="nt_xent", name="other")))
    found = {}
    for names in (("peers",), ("eager",)):
        record: dict[str, Any] = {"rows": []}
        suite.run(record, [CASES["sinkhorn-64"].at(32)], Plan(names, 0, 1), Cpu())
        found[names[0]] = record
    assert found["peers"]["peers"] == {"lightly": {"version": "1.6.0", "why_not": None}}
    assert tables.peer_remarks(found["peers"]) == ["peers: lightly 1.6.0"]
    assert set(found["peers"]["rows"][0]["time_s"]) == {"ours", "lightly", "G"}
    assert found["eager"]["peers"] == {}
    assert set(found["eager"]["rows"][0]["time_s"]) == {"ours", "eager", "G"}


def test_page_block(written: Path, record: dict[str, Any]) -> None:
    path = written / "page.md"
    path.write_text("<!-- bench:sinkhorn -->\n<!-- /bench:sinkhorn -->\n")
    assert page.main([str(written / "cpu-sinkhorn.json"), str(path)]) == 0
    text = path.read_text()
    assert text.count("| row |") == 3
    assert record["command"] in text
    assert "not finite" in text


# ---- on a GPU


def test_gpu_cases() -> None:
    small, large = (case for case in GPU_CASES if case.loss == "sinkhorn")
    assert (small.size, small.dim) == (4096, 3000)
    assert (large.size, large.dim) == (4096, 65536)
    rates = {"bfloat16": 8e14, "copy": 4.3e12}
    assert figures.floor_seconds(small.as_record(), rates) == pytest.approx(28.6e-6, rel=1e-2)


def test_backends_beside_the_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "why_not", lambda name, *_: "not built" if name == "absent" else None)
    monkeypatch.setattr(registry, "preferred", lambda *_: ["cuda", "absent", "triton"])
    case = next(case for case in GPU_CASES if case.loss == "sinkhorn")
    makers = runner._rivals(case, Gpu(), "cuda")
    assert list(makers) == ["triton"]
    assert makers["triton"]().keywords == {"backend": "triton"}
    assert runner._rivals(case, Cpu(), "cpu") == {}
