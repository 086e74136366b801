# SPDX-License-Identifier: Apache-2.0
"""One call draws a run: which panels there are, what they hold, and that one can read them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.example_runner import check_picture

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from pycl.viz import RunLog, dashboard
from pycl.viz.__main__ import main
from pycl.viz.panels import STYLES
from pycl.viz.series import by_step, histograms, numbers, running_median

KNOWN = [name for name in STYLES if name not in ("positives", "negatives", "overlap")]
BINS = 16
LONG = "a_name_of_a_measure_that_is_too_long_for_the_title_of_its_panel_and_has_$signs$_of_mathematics"


def run(n: int, every: int = 1) -> list[dict[str, Any]]:
    """n rows with every number there is; histograms in some of them."""
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, n + 1):
        row: dict[str, Any] = {"step": step, "epoch": step // 10, "knn": 1 - 1 / (step + 1), LONG: -1e6 * step}
        row |= {name: 1 / step + 0.1 * rng.random() for name in KNOWN}
        if step % every == 0:
            row["positives"] = rng.multinomial(50, np.eye(BINS)[-2] * 0.9 + 0.1 / BINS)
            row["negatives"] = rng.multinomial(500, np.ones(BINS) / BINS)
        rows.append(row)
    return rows


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def title(name: str) -> str:
    return STYLES[name].title if name in STYLES else name


@pytest.mark.parametrize(("n", "every"), [(1, 1), (3, 1), (100, 4), (100_000, 50)])
def test_runs_of_all_lengths(n: int, every: int, tmp_path: Path) -> None:
    figure = dashboard(run(n, every), tmp_path / "pictures" / "run.png")
    check_picture(tmp_path / "pictures" / "run.png")
    *known, cut, last = titles(figure)
    assert known == list(map(title, STYLES))
    assert cut == "a name of a measure that is too long for th…"
    assert last == "knn"
    drawn = [len(line.get_xdata()) for axes in figure.axes for line in axes.lines]
    assert max(drawn) <= 2000
    assert not overlapping(figure)


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Titles that reach into another panel, or beyond the page."""
    figure.draw_without_rendering()
    boxes = {axes.get_title(loc="left"): axes.get_tightbbox() for axes in figure.axes}
    page = figure.bbox
    beyond = [(name, "page") for name, box in boxes.items() if box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1]
    names = list(boxes)
    return beyond + [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if boxes[a].shrunk(0.995, 0.995).overlaps(boxes[b].shrunk(0.995, 0.995))
    ]


@pytest.mark.parametrize("name", [*KNOWN, "knn"])
def test_a_panel_for_each_number_and_no_empty_ones(name: str) -> None:
    figure = dashboard([{"step": 1, name: 0.5}, {"step": 2, "note": "text", "flag": True}])
    assert titles(figure) == [title(name)]


def test_histograms_alone() -> None:
    rows = [{"step": step, "positives": [0, 1, 3], "negatives": [4, 0, 0]} for step in (1, 2)]
    assert titles(dashboard(rows)) == [title(name) for name in ("positives", "negatives", "overlap")]
    assert titles(dashboard([{"step": 1, "positives": [0, 1]}])) == [title("positives")]
    none = [{"step": 1, "positives": [2, 1], "negatives": [0, 0]}]  # of one instance
    assert titles(dashboard(none)) == [title("positives")]


def test_a_line_is_its_numbers() -> None:
    rows = [{"step": step, "temperature": step / 10} for step in (4, 2, 9)]
    (axes,) = dashboard(rows).axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [2, 4, 9]
    assert line.get_ydata().tolist() == [0.2, 0.4, 0.9]


def test_rows_of_one_step_are_one() -> None:
    rows = by_step([{"step": 5, "loss": 1.0}, {"step": 5, "knn": 0.5}, {"step": 1}, {"step": 5, "loss": 2.0}])
    assert rows == [{"step": 1}, {"step": 5, "loss": 2.0, "knn": 0.5}]


def test_numbers_that_are_not_finite_are_counted() -> None:
    rows = [{"step": step, "loss": math.nan if step == 2 else 1.0} for step in (1, 2, 3)]
    figure = dashboard(rows)
    assert titles(figure) == ["loss (1 not finite)"]
    assert len(figure.axes[0].lines[0].get_xdata()) == 2


def test_a_spike_survives_the_thinning() -> None:
    rows = [{"step": step, "loss": 100.0 if step == 51_234 else 1.0} for step in range(100_000)]
    raw, median = dashboard(rows).axes[0].lines
    assert max(raw.get_ydata()) == 100.0
    assert set(median.get_ydata()) == {1.0}


@pytest.mark.parametrize("shape", [lambda t: 3 * t, lambda t: np.full_like(t, 2.0)], ids=["line", "constant"])
def test_a_running_median_follows(shape: Callable[[Any], Any]) -> None:
    values = shape(np.arange(200.0))
    series = numbers([{"step": i, "loss": v} for i, v in enumerate(values.tolist())])["loss"]
    _, found = running_median(series)
    np.testing.assert_allclose(found, values)


def test_shares_and_their_overlap() -> None:
    rows = [
        {"step": 1, "positives": [0, 0, 2, 2], "negatives": [10, 10, 0, 0]},
        {"step": 2, "positives": [0, 0, 2, 2], "negatives": [5, 5, 5, 5]},
    ]
    heats, overlap = histograms(rows)
    assert overlap is not None
    np.testing.assert_allclose(overlap.values, [0.0, 0.5])
    np.testing.assert_allclose(heats["negatives"].shares.T, [[0.5, 0.5, 0, 0], [0.25] * 4])
    np.testing.assert_allclose(heats["positives"].medians(), [0.5, 0.5])
    np.testing.assert_allclose(heats["positives"].step_edges, [0.5, 1.5, 2.5])


def test_other_bins_are_spread_over_those_of_the_last_row() -> None:
    rows = [
        {"step": 1, "positives": [1, 3]},
        {"step": 2, "positives": [1, 0, 0, 7], "edges": [0.0, 0.25, 0.5, 0.75, 1.0]},
        {"step": 3, "positives": [1, 1, 1, 1], "edges": [-1.0, 1.0]},
    ]
    shares = histograms(rows)[0]["positives"].shares.T
    np.testing.assert_allclose(shares, [[1 / 8, 1 / 8, 3 / 8, 3 / 8], [0, 0, 1 / 8, 7 / 8], [1 / 4] * 4])


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "empty": ([], ValueError, "log has no rows"),
    "nothing to draw": ([{"step": 1, "note": "text", "epoch": 2}], ValueError, "log has no number to draw"),
    "no step": ([{"loss": 1.0}], ValueError, "a row must have a step"),
    "a row": ({"step": 1, "loss": 1.0}, TypeError, "log must be a path, a RunLog or a list of rows, got dict"),
    "a number": (3, TypeError, "log must be a path"),
    "counts": ([{"step": 7, "positives": [1, -1]}], ValueError, "positives of step 7 must be a list of counts"),
    "no counts": ([{"step": 7, "negatives": 3.0}], ValueError, "negatives of step 7 must be a list of counts"),
    "edges": ([{"step": 7, "positives": [1, 1], "edges": [1, 0]}], ValueError, "edges of step 7 must be two ends"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_logs(case: str) -> None:
    log, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        dashboard(log)


def test_a_run_that_is_going_on(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.jsonl")
    for row in run(5):
        log.append(row)
        figure = dashboard(log)
    assert figure.get_suptitle() == "run.jsonl: steps 1 to 5, epoch 0"
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert dashboard(str(log.path)).get_suptitle() == figure.get_suptitle()


def test_matplotlib_s_own_state_stays(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib\n"
        "def settings(): return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
        "from pycl.viz import dashboard; before = settings(); dashboard([dict(step=1, loss=2.0)], 'run.png')\n"
        "assert settings() == before; print('matplotlib.pyplot' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'pycl-kernels\[train\]'"):
        dashboard([{"step": 1, "loss": 1.0}])


# the shell


def test_the_shell_draws_beside_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "run.jsonl")
    for row in run(3):
        log.append(row)
    assert main([str(log.path)]) == 0
    check_picture(tmp_path / "run.png")
    assert main([str(log.path), "-o", str(tmp_path / "other.png")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "run.png"), str(tmp_path / "other.png")]
    check_picture(tmp_path / "other.png")
    with pytest.raises(SystemExit):
        main([str(log.path), "-o", str(log.path)])
    assert len(RunLog.read(log.path)) == 3


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("", "has no rows"), ("x\n", "line 1 is not")])
def test_the_shell_says_why_not(content: str | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.jsonl").write_text(content)
    command = [sys.executable, "-m", "pycl.viz", "run.jsonl"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("pycl.viz: ")
    assert reason in line
    assert not (tmp_path / "run.png").exists()
