# SPDX-License-Identifier: Apache-2.0
"""The SwAV example in miniature: it learns, uses its prototypes, repeats itself and draws what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from types import ModuleType

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread, write_folder

TINY = ["--prototypes", "12", "--batch-size", "32", "--limit", "200", "--rows", "2", "--small-crops", "1", "--quiet"]


@pytest.fixture(scope="module")
def swav() -> Iterator[ModuleType]:
    with imported("swav") as module:
        yield module


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_digits_from_start_to_end(
    swav: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], epsilon: float
) -> None:
    arguments = ["--epochs", "4", "--queue-size", "64", "--frozen-steps", "2", "--epsilon", str(epsilon)]
    summary = swav.main([*TINY, *arguments, "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "kNN accuracy: " in shown
    assert f"epsilon {epsilon:g}" in shown
    check_picture(tmp_path / "swav.png")

    written = json.loads((tmp_path / "swav.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert written["data"] == {"name": "digits", "train": 200, "test": 200, "classes": 10}
    losses = written["losses"]
    assert len(losses) == 4 * (200 // 32)
    assert all(math.isfinite(loss) for loss in losses)
    assert mean(losses[-6:]) < mean(losses[:6])
    assert [row["epoch"] for row in written["rows"]] == [0, 2, 4]
    for row in written["rows"]:
        assert f"{100 * row['knn']:.1f}" in shown
        assert row["knn"] > 0.3  # ten classes
        assert 0 < row["codes"]["entropy"] < math.log(12)
        assert row["codes"]["dead"] == 0  # Sinkhorn sees to that
        assert row["codes"]["marginal_error"] < 0.5
        assert 1 <= row["predictions"]["perplexity"] <= 12
    assert written["rows"][1]["loss"] == pytest.approx(mean(losses[:12]))


def test_folder_of_images(swav: ModuleType, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "squares", colour=True)
    arguments = ["--data-root", str(root), "--image-size", "16", "--max-steps", "2", "--batch-size", "8"]
    summary = swav.main([*TINY, *arguments, "--small-crops", "0", "--queue-size", "0", "--out", str(tmp_path / "out")])
    assert summary["data"] == {"name": "squares", "train": 16, "test": 4, "classes": 2}
    assert len(summary["losses"]) == 2
    check_picture(tmp_path / "out" / "swav.png")


def trained(swav: ModuleType, *arguments: str) -> tuple[list, list[float], torch.Tensor]:
    """Rows, losses and prototypes of three steps."""
    args = swav.parse([*TINY, "--max-steps", "3", *arguments])
    torch.manual_seed(args.seed)
    data, prototypes = swav.training.start(args), swav.pycl.Prototypes(swav.DIM, args.prototypes)
    rows, losses = swav.train(swav.Model(1, 16), prototypes, data, args)
    return rows, losses, prototypes.weight.detach()


def test_one_seed_is_one_result(swav: ModuleType) -> None:
    (rows, losses, weight), again, other = (trained(swav, "--seed", seed) for seed in ("3", "3", "4"))
    assert (rows, losses) == again[:2]
    assert torch.equal(weight, again[2])
    assert losses != other[1]


def test_frozen_prototypes_stay_as_they_were_drawn(swav: ModuleType) -> None:
    torch.manual_seed(0)
    drawn = swav.pycl.Prototypes(swav.DIM, 12).weight.detach()
    torch.testing.assert_close(trained(swav, "--frozen-steps", "3")[2], drawn)
    moved = trained(swav, "--frozen-steps", "2")[2]
    assert (moved - drawn).abs().max() > 1e-4
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(12))


def test_strongest_images_of_the_most_and_the_least_used_prototypes(
    swav: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swav, "SHOWN_PROTOTYPES", 2)
    monkeypatch.setattr(swav, "SHOWN_IMAGES", 2)
    codes = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.8, 0.2, 0.0]])
    assert swav.strongest(codes, codes.mean(0), torch.tensor([10, 11, 12])).tolist() == [[12, 10], [11, 10]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "0"], "--epsilon must be positive"),
        (["--prototypes", "1"], "--prototypes must be at least 2"),
        (["--small-crops", "-1"], "--small-crops must be at least 0"),
    ],
)
def test_bad_options_are_explained(
    swav: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        swav.main([*TINY, *arguments])
    assert message in capsys.readouterr().err
