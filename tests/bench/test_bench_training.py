# SPDX-License-Identifier: Apache-2.0
"""Whole training steps: the clocked loss leaves gradients as they are, rows are compared, the table says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pycl.bench.measure.peak import Failed
from pycl.bench.present import page
from pycl.bench.training import __main__ as program
from pycl.bench.training import step
from pycl.bench.training.recipes import RECIPES, Recipe
from pycl.functional import info_nce


def _linear() -> tuple[nn.Module, nn.Module]:
    model = nn.Linear(6, 4)
    return model, model


def _rows(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 6), torch.randn(n, 6)


TINY = Recipe("tiny", "pairs", _linear, _rows, "info-nce-pytorch InfoNCE", RECIPES["minilm"].dense)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny", TINY)


def test_a_clocked_loss_has_the_gradient_of_the_loss() -> None:
    inputs = [x.double().requires_grad_() for x in _rows(9)]
    clocked = step.Clocked(info_nce)
    found = torch.autograd.grad(clocked(*inputs), inputs)
    value = info_nce(*inputs)
    torch.testing.assert_close(found, torch.autograd.grad(value, inputs))
    assert clocked.value == pytest.approx(value.item())
    assert clocked.seconds > 0


@pytest.mark.usefixtures("tiny")
def test_a_step_in_chunks_is_the_step() -> None:
    job = {"recipe": "tiny", "size": 20, "side": "ours", "threads": torch.get_num_threads()}
    whole, chunks = (step.step_here(job | {"chunk": chunk}) for chunk in (None, 7))
    assert chunks["value"] == pytest.approx(whole["value"], rel=1e-5)
    assert 0 < whole["loss_seconds"] < whole["seconds"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_a_library(name: str) -> None:
    assert RECIPES[name].library.name == RECIPES[name].dropin


def _fake(recipe: str, size: int, chunk: int | None, side: str) -> dict[str, float]:
    return {
        "seconds": {"ours": 2.0, "peer": 2.5, "eager": 3.0}[side],
        "loss_seconds": 0.5,
        "peak_mib": 2048.0,
        "value": 3,
    }


def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(program, "measured", _fake)
    monkeypatch.setattr(program.importlib.metadata, "version", lambda name: "1.0")
    arguments = ["--sizes", "64,128", "--rounds", "2,1", "--chunk-from", "100", "--only", "simclr"]
    assert program.main([*arguments, "--json", str(tmp_path)]) == 0
    assert "64 images (25.0%)" in capsys.readouterr().out
    path = tmp_path / "page.md"
    path.write_text("<!-- bench:training -->\n<!-- /bench:training -->\n")
    record = tmp_path / "cpu-training.json"
    assert json.loads(record.read_text())["command"] == "python -m pycl.bench.training " + " ".join(arguments)
    page.main([str(record), str(path)])
    row = "| SimCLR, ResNet-18, 32 x 32 pixels | 128, chunks of 512 | 128 images (25.0%) | 102 images (20.0%) |"
    assert row in path.read_text()


def test_losses_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*arguments: Any) -> dict[str, float]:
        return _fake(*arguments) | {"value": 3.1 if arguments[3] == "peer" else 3.0}

    monkeypatch.setattr(program, "measured", off)
    with pytest.raises(AssertionError, match=r"clip, N = 64: the loss of peer is 3\.1, dense 3\.0"):
        program.row_of("clip", 64, 1, None)


def test_bad_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--sizes", "64,128", "--rounds", "1"])
    assert "--rounds must be one number for each of the 2 sizes, got (1,)" in capsys.readouterr().err


def test_a_process_that_fails() -> None:
    with pytest.raises(Failed, match="a step of no-such-recipe"):
        step.measured("no-such-recipe", 8, None, "ours")
