# SPDX-License-Identifier: Apache-2.0
"""gpu-first without a GPU: the order of things, limits of time, what a failure leaves; all of it on the null GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pycl.bench.first import __main__ as first
from pycl.bench.first import builds, cases, processes, report, smoke, stages
from pycl.bench.first.place import Place

ROOT = Path(__file__).resolve().parent.parent.parent
IN_CUDA = f"{smoke.IN_CUDA}9"


# ---- the smoke


def a_place(folder: Path) -> Place:
    place = Place(folder, folder)
    place.ptxas.parent.mkdir(parents=True)
    place.ptxas.touch()
    return place


def test_a_case_that_fails_is_tried_in_every_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = {
        "good": set(builds.BUILDS),
        "miscompiled": {"ptxas", "stage"},
        "hopeless": set(),
        IN_CUDA: set(),
    }

    def run(command: list[str], *, environment: dict[str, str], **_: Any) -> processes.Done:
        build = environment[builds.VARIABLE]
        assert (builds.PTXAS in environment) == (build == "ptxas")
        ok = build in right[command[-1]]
        return processes.Done(0 if ok else 1, 1.0, "", "" if ok else "trace\nWrong: value is off by 0.5")

    monkeypatch.delenv(builds.PTXAS, raising=False)
    monkeypatch.setattr(smoke, "run", run)
    told = report.Report(tmp_path, time.monotonic())
    assert smoke.smoke(a_place(tmp_path), list(right), smoke.Limits(2, 5.0, time.monotonic() + 60), told) == []
    record = json.loads((tmp_path / report.JSON).read_text())
    tried = {name: [a["build"] for a in record["smoke"] if a["case"] == name] for name in right}
    assert tried == {
        "good": ["default"],
        "miscompiled": list(builds.BUILDS),
        "hopeless": list(builds.BUILDS),
        IN_CUDA: ["default"],
    }
    wrong, cured = report.verdict(record["smoke"])
    assert set(wrong) == {"hopeless", IN_CUDA}
    assert cured == {"ptxas": ["miscompiled"], "stage": ["miscompiled"]}
    text = (tmp_path / report.TEXT).read_text()
    assert re.search(r"^FAIL  hopeless +piece +1\.0 s  Wrong: value is off by 0\.5$", text, re.MULTILINE)
    assert "right with build 'ptxas' only: miscompiled\n" in text


@pytest.mark.parametrize(
    ("fails", "mended", "build"),
    [((), {}, "default"), (("a",), {"a": ("ptxas", "piece")}, "ptxas"), (("a",), {"a": ("piece",)}, "default"),
     (("a", "b"), {"a": ("ptxas",), "b": ("stage",)}, "default"), (("a", "b"), {"a": ("ptxas",)}, "default")],
)  # fmt: skip
def test_figures_are_measured_with_what_mends_everything(
    tmp_path: Path, fails: tuple[str, ...], mended: dict[str, tuple[str, ...]], build: str
) -> None:
    told = report.Report(tmp_path, time.monotonic())
    for case in ("a", "b", "c"):
        for tried in builds.BUILDS if case in fails else ("default",):
            ok = case not in fails if tried == "default" else tried in mended.get(case, ())
            told.add("smoke", {"case": case, "build": tried, "ok": ok, "seconds": 1.0, "said": ""})
    place = first._cured(a_place(tmp_path / "place"), told)
    assert place.build == build
    assert (place.environment.get(builds.PTXAS) == str(place.ptxas)) == (build == "ptxas")
    assert len(told.record["remarks"]) == (build == "ptxas")


def test_no_time_is_said(tmp_path: Path) -> None:
    told = report.Report(tmp_path, time.monotonic())
    names = list(smoke.NAMES[:2])
    assert smoke.smoke(a_place(tmp_path), names, smoke.Limits(2, 5.0, time.monotonic()), told) == names
    assert told.record["smoke"] == []


def test_a_process_ends_in_time_with_its_own(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(file)!r}).touch()"
    program = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    done = processes.run([sys.executable, "-c", program], seconds=1.5, environment=os.environ, folder=tmp_path)
    assert done.status is None
    assert not done.ok
    assert done.said.startswith("no end after ")
    time.sleep(3)
    assert not file.exists()


def test_all_processes_end_with_the_run(tmp_path: Path) -> None:
    """Told to end, it starts none of those that wait, either."""
    program = (
        "import os, sys\nfrom concurrent.futures import ThreadPoolExecutor\nfrom pathlib import Path\n"
        "from first import processes\nprocesses.end_all_with_this()\n"
        "def one(k): return processes.run(['sleep', '30'], seconds=60, environment=os.environ, folder=Path('.'))\n"
        "with ThreadPoolExecutor(2) as pool:\n    found = pool.map(one, range(6))\n    print('begun', flush=True)\n"
        "    list(found)\n"
    )
    command = [sys.executable, "-c", program]
    quiet: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT / "bench", **quiet) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        _, said = process.communicate(timeout=25)
    assert process.returncode == 1
    assert said.strip().endswith("ended from outside")


def test_what_a_process_that_fails_said(tmp_path: Path) -> None:
    def run(program: str) -> processes.Done:
        return processes.run([sys.executable, "-c", program], seconds=60, environment=os.environ, folder=tmp_path)

    assert run("raise ValueError('of this')").said == "ValueError: of this"
    assert run("import os; os.abort()").said.startswith("ended by SIGABRT")
    assert (run("").ok, run("").said) == (True, "")


# ---- what follows


def a_run(folder: Path, seconds: float) -> stages.Run:
    now = time.monotonic()
    return stages.Run(Place(folder, folder, dry=True), report.Report(folder, now), now, seconds, "abc", 8)


@pytest.mark.parametrize(
    ("stage", "why", "seconds", "says"),
    [
        ("headline", "wrong in every build: x", 600.0, "left out: wrong in every build: x"),
        ("gpu-tests", "wrong in every build: x", 20.0, "left out: the time is up"),
        ("compile", None, 600.0, "left out: it shows nothing without a GPU"),
    ],
)
def test_stages_that_are_left_out(tmp_path: Path, stage: str, why: str | None, seconds: float, says: str) -> None:
    run = a_run(tmp_path, seconds)
    assert stages.follow(run, next(s for s in stages.STAGES if s.name == stage), why)
    assert [(found["name"], found["says"]) for found in run.report.record["stages"]] == [(stage, says)]


def test_a_stage_leaves_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> processes.Done:
        asked.update(options, command=command)
        return processes.Done(None, 12.0, "row 1\nrow 2", "")

    monkeypatch.setattr(stages, "run", run)
    a = a_run(tmp_path, 600.0)
    assert not stages.follow(a, stages.STAGES[0], None)
    assert 230 < asked["seconds"] < 241  # four minutes to the headline figures
    budget = float(asked["command"][asked["command"].index("--budget") + 1])
    assert budget <= asked["seconds"] - stages.LEAVE + 1
    assert asked["command"][-4:] == ["--json", str(tmp_path / "headline.json"), "--commit", "abc"]
    text = (tmp_path / report.TEXT).read_text()
    assert "headline: no end after 12 s; 0 entries of the cache were made here, 12 s\nrow 1\nrow 2\n" in text


def test_stages_share_the_time() -> None:
    ends = [stages.SMOKE_UNTIL, *(stage.until for stage in stages.STAGES)]
    assert ends == sorted(ends)
    assert ends[-1] < 1
    assert len({stage.name for stage in stages.STAGES}) + 2 <= 8, "files of the results"


# ---- the cases


def test_cases_are_known() -> None:
    assert len(set(smoke.NAMES)) == len(smoke.NAMES)
    assert all(callable(cases.case(name)) for name in smoke.NAMES)


def test_a_case_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, where there is a value to compare."""
    pytest.importorskip("triton")
    cases.run("average-d96-bf16", "cpu")
    exact = cases.pair_average
    monkeypatch.setattr(cases, "pair_average", lambda *a, **k: exact(*a, **k) * 1.01)
    with pytest.raises(cases.Wrong, match=r"average: off by 0.01\d* of the largest entry, allowed 0.004"):
        cases.run("average-d96-bf16", "cpu")
    with pytest.raises(cases.Wrong, match="off by nan"):
        cases.near("it", torch.full((2,), torch.nan), torch.ones(2, dtype=torch.float64), 0.1)


def test_other_builds_change_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from pycl.backends.triton import tiles

    before = tiles.pick("backward_dx", 90, 2, 128)
    assert before is not None
    for build, change in (("ptxas", {}), ("piece", {"piece": min(64, before.cols)}), ("stage", {"stages": 1})):
        with monkeypatch.context() as patch:
            patch.setattr(tiles, "pick", tiles.pick)
            patch.setenv(builds.VARIABLE, build)
            builds.apply()
            assert tiles.pick("backward_dx", 90, 2, 128) == before._replace(**change)


# ---- all of it, on the null GPU


def dry_run(folder: Path, *arguments: str) -> dict[str, Any]:
    outside = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pycl.bench.first", str(folder / "out"), "--dry-run", *arguments]
    command += ["--pack", str(folder / "none"), "--work", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert len(list((folder / "out").iterdir())) <= 8
    found: dict[str, Any] = json.loads((folder / "out" / report.JSON).read_text())
    return found


def test_dry_run(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    found = dry_run(tmp_path, "--stages", "smoke", "--cases", "sinkhorn-triton-*")
    assert found["facts"]["gpu"] == "null GPU"
    assert found["facts"]["architecture"] == 90
    assert [(a["case"], a["ok"]) for a in found["smoke"]] == [("sinkhorn-triton-3000", True)]


@pytest.mark.thorough
def test_dry_run_of_everything(tmp_path: Path) -> None:
    found = dry_run(tmp_path, "--seconds", "100000", "--cases", "*-d128-bf16")
    assert {a["ok"] for a in found["smoke"]} == {True}
    says = {stage["name"]: stage["says"].split(";")[0] for stage in found["stages"]}
    nothing = "left out: it shows nothing without a GPU"
    done, left = ("headline", "peers", "gpu-tests"), ("compile", "cuda-tests", "loss-tests")
    assert says == dict.fromkeys(done, "done") | dict.fromkeys(left, nothing)
