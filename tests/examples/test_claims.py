# SPDX-License-Identifier: Apache-2.0
"""The check of the papers' claims: which trainings it runs, when a claim has shown, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.example_runner import check_picture, imported, one_thread


@pytest.fixture(scope="module")
def claims() -> Iterator[ModuleType]:
    with imported("claims") as module:
        yield module


def pretend(
    claims: ModuleType, monkeypatch: pytest.MonkeyPatch, accuracy: Callable[[list[str]], float]
) -> list[tuple[list[str], Path]]:
    """Trainings that take no time and end with that accuracy; who was trained, and where."""
    trained = []

    def train(words: list[str], out: Path) -> dict[str, Any]:
        trained.append((words, out))
        out.mkdir(parents=True)
        value, views = accuracy(words), int(words[words.index("--views") + 1]) if "--views" in words else 2
        after = {"knn": (value, 0.0), "linear": (value, 0.0), "effective_rank": (10.0 * views, 0.0)}
        last = {"perplexity": 100.0, "dead": 0, "predicted_perplexity": 90.0, "knn": value, "linear": value}
        run = {"prototypes": 100}
        before = dict.fromkeys(after, (0.1, 0.0))
        return {"trainings": {"the loss": {"before": before, "after": after}}, "rows": [last, last], "run": run}

    monkeypatch.setattr(claims, "train", train)
    return trained


def right(words: list[str]) -> float:
    """What the papers say."""
    value = {"pairwise": 0.5, "mv_info_nce": 0.6, "mv_dhel": 0.7, "dcl": 0.6, "simclr": 0.6}.get(
        next((w for w in words if w in ("pairwise", "mv_info_nce", "mv_dhel", "dcl", "simclr")), ""), 0.6
    )
    if "simclr" in words and "--batch-size" in words:
        value -= 3 / int(words[words.index("--batch-size") + 1])
    if "--long-tail" in words:
        value -= 0.05 if "cacr" in words else 0.1
    if "arbitrary" in words and "sup_con" in words:
        value -= 0.3
    return value + 0.01 * int(words[words.index("--seed") + 1])


def test_all_claims_show_where_the_papers_are_right(
    claims: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = pretend(claims, monkeypatch, right)
    results = claims.main(["--seeds", "2", "--out", str(tmp_path), "--limit", "50"])
    assert [result["claim"] for result in results] == list(claims.CLAIMS)
    assert all(result["shown"] for result in results)
    assert len(trained) == 2 * (3 * 3 + 2 * 4 + 3 + 2 * 2 + 2 * 2)
    assert len({out for _, out in trained}) == len(trained)
    assert all(words[-6:-2] == ["--limit", "50", "--threads", "1"] for words, _ in trained)
    shown = capsys.readouterr().out
    assert "70.5 ± 0.5" in shown
    assert "untrained" in shown
    assert results[0]["untrained"]["linear (%)"] == [10.0, 10.0]
    for result in results:
        assert json.loads((tmp_path / f"{result['claim']}.json").read_text()) == result
        check_picture(tmp_path / f"{result['claim']}.png")


@pytest.mark.parametrize("claim", ["views", "decoupled", "cacr", "simlap"])
def test_a_claim_that_does_not_show_is_said(
    claims: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], claim: str
) -> None:
    pretend(claims, monkeypatch, lambda words: 1 - right(words))
    assert not claims.main([claim, "--seeds", "1", "--out", str(tmp_path)])[0]["shown"]
    assert "NOT shown" in capsys.readouterr().out


def test_trainings_are_run_once_and_kept(claims: ModuleType, tmp_path: Path) -> None:
    """A real one, by the program."""
    arguments = ["swav", "--seeds", "1", "--max-steps", "1", "--limit", "40", "--out", str(tmp_path), "--jobs", "2"]
    with one_thread():
        result = claims.main(arguments)[0]
        summaries = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
        assert len(summaries) == 3
        assert claims.main(arguments)[0] == result
        with pytest.raises(SystemExit, match=r"has the run of another command, swav_images\.py .* --limit 40 "):
            claims.main([*arguments, "--limit", "41"])
    assert {path: path.stat().st_mtime_ns for path in summaries} == summaries
    assert all(0 < row["measured"]["in use, of codes (%)"][0] <= 100 + 1e-9 for row in result["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flat"], "no claim 'flat': there are views, decoupled"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["swav", "--data-root", "nowhere", "--seeds", "1"], "has no folder 'train'"),
    ],
)
def test_bad_options_are_explained(
    claims: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        claims.main([*arguments, "--out", str(tmp_path)])
    assert message in str(stop.value.code) + capsys.readouterr().err
