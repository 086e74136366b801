# SPDX-License-Identifier: Apache-2.0
"""The SwAV example in miniature: it learns, uses its prototypes, repeats itself and draws what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread, write_folder

TINY = [
    "--prototypes",
    "12",
    "--batch-size",
    "32",
    "--limit",
    "200",
    "--evaluate-every",
    "2",
    "--small-crops",
    "1",
    "--quiet",
]


@pytest.fixture(scope="module")
def swav() -> Iterator[ModuleType]:
    with imported("swav_images") as module:
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
    check_picture(tmp_path / "clusters.png")
    check_picture(tmp_path / "dashboard.png")

    written = json.loads((tmp_path / "summary.json").read_text())
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
        assert 0 < row["assignment_entropy"] < math.log(12)
        assert row["dead"] == 0  # Sinkhorn sees to that
        assert 1 <= row["predicted_perplexity"] <= 12
    assert written["rows"][1]["loss"] == pytest.approx(mean(losses[:12]))


def test_folder_of_images(swav: ModuleType, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "squares", colour=True)
    arguments = ["--data-root", str(root), "--image-size", "16", "--max-steps", "2", "--batch-size", "8"]
    summary = swav.main([*TINY, *arguments, "--small-crops", "0", "--queue-size", "0", "--out", str(tmp_path / "out")])
    assert summary["data"] == {"name": "squares", "train": 16, "test": 4, "classes": 2}
    assert len(summary["losses"]) == 2
    check_picture(tmp_path / "out" / "clusters.png")


def trained(swav: ModuleType, out: Path, *arguments: str) -> tuple[list[float], torch.Tensor]:
    """Losses and prototypes of three steps."""
    summary = swav.main([*TINY, "--max-steps", "3", *arguments, "--out", str(out)])
    state = torch.load(out / "checkpoint.pt", weights_only=True)["task"]
    return summary["losses"], state["prototypes.weight"]


def test_one_seed_is_one_result(swav: ModuleType, tmp_path: Path) -> None:
    (losses, weight), again, other = (
        trained(swav, tmp_path / str(i), "--seed", seed) for i, seed in enumerate(("3", "3", "4"))
    )
    assert losses == again[0]
    assert torch.equal(weight, again[1])
    assert losses != other[0]


@pytest.mark.parametrize("stop_at", [2, 5])  # before the queue takes part, and after
def test_a_resumed_run_is_the_uninterrupted_one(
    swav: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    flags = [*TINY, "--max-steps", "7", "--checkpoint-every", "1", "--limit", "96", "--queue-size", "32"]
    flags += ["--queue-after", "1", "--frozen-steps", "1"]  # an epoch is three steps
    whole = swav.main([*flags, "--out", str(tmp_path / "whole")])
    update = swav.SwAV.before_update

    def stop(self: Any, step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt
        update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(swav.SwAV, "before_update", stop)
        with pytest.raises(KeyboardInterrupt):
            swav.main([*flags, "--out", str(tmp_path / "parts")])
    for _ in range(2):  # the second time nothing is left to do
        parts = swav.main([*flags, "--out", str(tmp_path / "parts"), "--resume", "auto"])
        assert parts["losses"] == whole["losses"]
        states = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts")]
        assert states[0]["task"]["late.queue_pointer"] > 32
        torch.testing.assert_close(states[1]["task"], states[0]["task"], rtol=0, atol=0)
        torch.testing.assert_close(states[1]["optimizer"], states[0]["optimizer"], rtol=0, atol=0)


def test_frozen_prototypes_stay_as_they_were_drawn(swav: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = swav.parse(TINY)
    drawn = swav.SwAV(swav.images.load(args), args).prototypes.weight.detach()
    torch.testing.assert_close(trained(swav, tmp_path / "all", "--frozen-steps", "3")[1], drawn)
    moved = trained(swav, tmp_path / "two", "--frozen-steps", "2")[1]
    assert (moved - drawn).abs().max() > 1e-4
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(12))


def test_queue_takes_part_after_its_epoch(swav: ModuleType, tmp_path: Path) -> None:
    trained(swav, tmp_path, "--queue-after", "0", "--queue-size", "64")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["task"]
    assert state["late.queue_pointer"] == 3 * 32
    trained(swav, tmp_path, "--queue-after", "1", "--queue-size", "64", "--resume", "never")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["task"]["late.queue_pointer"] == 0


def test_dense_form_is_the_same_loss(swav: ModuleType) -> None:
    """Without a queue: values, and gradients of crops and prototypes."""
    args = swav.parse(TINY)
    task = swav.SwAV(swav.images.load(args), args).double()
    task.before_step(0)
    z = torch.randn(3, 16, swav.encoders.DIM, dtype=torch.float64)
    z = torch.nn.functional.normalize(z, dim=2).requires_grad_()
    values = [task.loss(z, []), task.dense_loss(z, [])]
    torch.testing.assert_close(*values)
    gradients = [torch.autograd.grad(value, [z, task.prototypes.weight]) for value in values]
    torch.testing.assert_close(*gradients)


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
