# SPDX-License-Identifier: Apache-2.0
"""Another commit is measured beside this one, row by row, and whatever keeps it from that is said in a line."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycl.bench.__main__ import main
from pycl.bench.base import build, compare
from pycl.bench.base.build import Build, CannotBuild
from pycl.bench.base.compare import BASE, NOW
from pycl.bench.measure import timing, turns
from pycl.bench.measure.runner import Plan
from pycl.bench.measure.timing import Ratio
from pycl.bench.measure.worker import BENCH, Died, Hosted, unheard
from pycl.bench.present import against, record
from pycl.bench.suites.losses import LOSS_CASES

ROOT = Path(__file__).parent.parent.parent
CASE = replace(LOSS_CASES[0].at(64), dim=32)
READY = {"backend": "cpu", "notes": [], "seconds": 1.0, "inputs": [((64, 32), "torch.float32", 1.5)]}


class Played:
    """Processes that answer from a table: what ``ready`` and ``peak`` return, and how long a sample takes."""

    own: dict[str, str] = {}  # noqa: RUF012  # nobody writes it

    def __init__(self, answers: dict[str, Any], known: bool = True) -> None:
        self.answers, self.known = answers, known
        self.log: list[str] = []

    def call(self, side: str, function: Callable[..., Any], *arguments: Any) -> Any:
        self.log.append(f"{side} {function.__name__}")
        if function is turns.sample:
            return {BASE: 0.3, NOW: 0.2}[side]
        answer = self.answers[side]
        if isinstance(answer, Exception):
            raise answer
        return answer

    call_alone = call

    def base_knows(self, name: str) -> bool:
        return self.known

    def close(self) -> None:
        self.log.append("close")


def rows(pair: Played, *cases: Any, rounds: int | None = 18) -> list[dict[str, Any]]:
    found: dict[str, Any] = {}
    compare.run(found, cases or [CASE], Plan((), 0.0, rounds), pair, unheard)  # type: ignore[arg-type]  # plays one
    return found["rows"]


def printed(found: list[dict[str, Any]], **more: Any) -> str:
    base = {"ref": "main", "commit": "0123456789abcdef"}
    whole = record.new_record("losses", "python -m pycl.bench", "fedc")
    return against.text(whole | {"base": base, "rows": found, "own_workloads": {}} | more)


def test_builds_take_turns() -> None:
    pair = Played({BASE: READY, NOW: READY})
    (row,) = rows(pair)
    one = ["base ready", "now ready", *(["base sample", "now sample", "now sample", "base sample"] * 3), "close"]
    assert pair.log == [*(one * compare.PAIRS), "close"]
    assert row["ratio"] == pytest.approx(dict.fromkeys(("median", "q1", "q3", "low", "high"), 1.5))
    assert row["time_s"][NOW]["rounds"] == 18
    lines = printed([row]).splitlines()
    assert lines[0].startswith("base: main (0123456789); now: pycl")
    (line,) = (line for line in lines if line.startswith("clip 64"))
    assert line.split()[6:] == ["300", "200", "1.500", "1.500-1.500", "18", "faster"]


def test_rounds_are_shared() -> None:
    assert [share.rounds for share in compare.shares_of(Plan((), 1.0, 7))] == [2, 2, 3]
    assert [share.rounds for share in compare.shares_of(Plan((), 1.0, 1))] == [1]
    assert sum(share.seconds for share in compare.shares_of(Plan((), 1.0))) == pytest.approx(1.0)
    (row,) = rows(Played({BASE: READY, NOW: READY}), rounds=1)
    assert "too few rounds" in printed([row])
    pair = Played({BASE: READY, NOW: READY})
    rows(pair, rounds=None)
    assert pair.log.count("now sample") == compare.PAIRS * compare.LEAST


@pytest.mark.parametrize(
    ("measure", "broken"),
    [
        ("time", {"refused": "loss is off by 1"}),
        ("time", Died("loss is off by 1", None)),
        ("memory", Died("loss is off by 1", None)),
    ],
    ids=["wrong", "died", "memory"],
)
def test_who_fails(measure: str, broken: Any) -> None:
    """A row that the base does not know is new, one that it fails says why, and ours that fails is refused."""
    case = replace(CASE, measure=measure)
    fine = READY | {"peak_mib": 2.0}
    reason = "loss is off by 1"
    (row,) = rows(Played({BASE: broken, NOW: fine}), case)
    assert row["refused"] is None
    assert row["skipped"] == {BASE: reason}
    assert f"base has no time: {reason} (clip 64" in printed([row])
    (row,) = rows(Played({BASE: broken, NOW: fine}, known=False), case)
    assert row["new"]
    assert row["skipped"] == {}
    (line,) = (line for line in printed([row]).splitlines() if line.startswith("clip 64"))
    assert line.split()[6] == "new"
    (row,) = rows(Played({BASE: fine, NOW: broken}), case)
    assert row["refused"] == reason
    assert f"REFUSED clip 64, d = 32, float32: {reason}" in printed([row])


def test_other_inputs_have_no_ratio() -> None:
    (row,) = rows(Played({BASE: READY | {"inputs": []}, NOW: READY}))
    assert "ratio" not in row
    assert row["skipped"] == {BASE: "it makes other inputs for this row"}
    (row,) = rows(Played({BASE: READY | {"backend": "reference"}, NOW: READY}))
    assert row["notes"] == ["the base's backend is reference, now it is cpu"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.03, 1.2, "faster"),
        (0.8, 0.97, "slower"),
        (0.99, 1.01, "the same"),
        (0.9, 1.1, "not clear"),
        (1.01, 1.5, "not clear"),
        (None, None, "-"),
    ],
)
def test_verdict(low: float | None, high: float | None, said: str) -> None:
    assert against.verdict({"ratio": {"low": low, "high": high}}) == said


def test_interval_of_a_median() -> None:
    assert timing.around_median(range(5)) is None
    assert timing.around_median(range(6)) == (0, 5)
    assert timing.around_median(range(20)) == (5, 14)  # of the tables of order statistics
    draw = random.Random(0)
    found = [timing.around_median(sorted(draw.lognormvariate(0, 1) for _ in range(15))) for _ in range(2000)]
    assert 0.95 <= sum(low <= 1 <= high for low, high in found if low) / len(found) < 0.98


def test_ratio_of_groups() -> None:
    """One process that is slower than another one of the same build is no change."""
    steady, shifted = ([1.0] * 20, [1.0] * 20), ([1.5] * 6, [1.0] * 6)
    assert Ratio.of([steady, shifted]) == (1.0, 1.0, 1.0, 1.0, 1.5)
    assert Ratio.of([([2.0] * 3, [1.0] * 3), ([3.0] * 3, [1.0] * 3)]) == (2.5, 2.0, 3.0, 2.0, 3.0)
    assert Ratio.of([([1.0], [1.0])])[3:] == (None, None)


# ---- processes


def test_a_commit_against_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything but the build, with one pair of processes."""
    monkeypatch.setattr(build, "built", lambda ref, root: Build(ref, "0" * 40, root))
    monkeypatch.setattr(compare, "PAIRS", 1)
    assert main(["--base", "HEAD", "--rows", "nt_xent-256", "--sizes", "64", "--repeats", "6"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("nt_xent 64"))
    base, now = (float(cell) for cell in line.split()[6:8])
    assert 0.1 < base / now < 10
    assert line.split()[10] == "6"


def test_benchmarks_that_the_library_cannot_serve(tmp_path: Path) -> None:
    """Its own workloads stand in, and the code that measures is that of the given folder."""
    newer = tmp_path / "bench"
    shutil.copytree(BENCH, newer, ignore=shutil.ignore_patterns("__pycache__", "results"))
    with (newer / "workloads" / "losses.py").open("a") as file:
        file.write("from pycl.functional import of_tomorrow\n")
    worker = Hosted(ROOT, newer)
    try:
        assert worker.own is not None
        assert worker.own.startswith("ImportError: cannot import name 'of_tomorrow'")
        found = worker.call(turns.ready, CASE, 1, True, limit=120.0)
        assert found["inputs"] == [
            (tuple(x.shape), str(x.dtype), pytest.approx(x.detach().double().sum().item())) for x in CASE.inputs("cpu")
        ]
        assert worker.call(turns.sample, 2, limit=120.0) > 0
        assert (
            "KeyError: 'nobody'" in worker.call(turns.ready, replace(CASE, loss="nobody"), 1, True, limit=60)["refused"]
        )
    finally:
        worker.close()


def test_a_library_that_does_not_import(tmp_path: Path) -> None:
    (tmp_path / "pycl").mkdir()
    (tmp_path / "pycl" / "__init__.py").write_text("raise RuntimeError('broken\\nlong story')\n")
    with pytest.raises(Died, match=r"^RuntimeError: broken$"):
        Hosted(tmp_path)
    assert compare.Pair({BASE: tmp_path}).base_knows("anything"), "what cannot be asked is taken as known"


# ---- commits


PIP = "  error: subprocess-exited-with-error\n\n"  # what every failed build begins with


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two commits, and a cache for its builds."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "--quiet")
    for text in ("first", "second"):
        (root / "text").write_text(text)
        git(root, "add", "text")
        git(root, "commit", "--quiet", "-m", text)
    return root


def test_a_commit_is_built_once(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def install(tree: Path, site: Path, log: Path) -> None:
        built.append((tree / "text").read_text())
        (site / "pycl").mkdir(parents=True)

    monkeypatch.setattr(build, "_install", install)
    (checkout / "text").write_text("not committed")
    for _ in range(2):
        found = build.built("HEAD~1", checkout)
        assert (found.folder / "pycl").is_dir()
        assert found.commit == git(checkout, "rev-parse", "HEAD~1")
    assert built == ["first"]
    assert git(checkout, "worktree", "list").count("\n") == 0
    assert git(checkout, "status", "--porcelain") == "M text"
    assert [path.name for path in build.cache().iterdir()] == [found.folder.name], "the sources are still there"
    monkeypatch.setenv("CXXFLAGS", "-O1")
    assert build.folder_name(found.commit) != found.folder.name


def test_a_build_that_fails(checkout: Path) -> None:
    with pytest.raises(CannotBuild, match=r"^its build failed: .*\(the whole output: .*\.log\)$"):
        build.built("HEAD", checkout)  # there is nothing that pip could install
    assert git(checkout, "worktree", "list").count("\n") == 0


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (f"{PIP}  No CMAKE_CXX_COMPILER could be found.\n", "there is no C++ compiler that works"),
        (f"{PIP}  CMake Error: CMAKE_CXX_COMPILER not set, after\n", "there is no C++ compiler that works"),
        (f"{PIP}  The C++ compiler\n  x\n  is not able to compile\n", "there is no C++ compiler that works"),
        (f"{PIP}  a.cpp:3:1: error: no ';'\n  ninja: build stopped\n{PIP}", "a.cpp:3:1: error: no ';'"),
        (f"{PIP}  ERROR: Could not find a version\n", "ERROR: Could not find a version"),
        ("/usr/bin/python: No module named pip\n", "/usr/bin/python: No module named pip"),
        ("", "it said nothing"),
    ],
)
def test_reason_of_a_build(output: str, said: str) -> None:
    assert build.reason_in(output) == said


def test_no_commit(checkout: Path, tmp_path: Path) -> None:
    for ref in ("nothing", "", "--all", "HEAD:text"):
        with pytest.raises(CannotBuild, match="git knows no such commit"):
            build.commit_of(ref, checkout)
    with pytest.raises(CannotBuild, match="which is not a git checkout"):
        build.commit_of("HEAD", tmp_path)


def test_what_cannot_be_built_ends_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot(ref: str, root: Path) -> Build:
        raise CannotBuild("git is not installed")

    monkeypatch.setattr(build, "built", cannot)
    assert main(["--base", "main"]) == 2
    assert capsys.readouterr().err == "pycl.bench: --base main cannot run: git is not installed\n"


@pytest.mark.parametrize(
    "other", ["--suite=gpu", "--plot=x", "--json=x", "--csv=x", "--baselines=eager", "--commit=x", "--budget=1"]
)
def test_contradictions(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--base", "HEAD", other])
    assert "for --base" in capsys.readouterr().err or other == "--suite=gpu"
