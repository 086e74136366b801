# SPDX-License-Identifier: Apache-2.0
"""Modalities with missing entries in miniature: who lacks what, the loss, runs that are resumed, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread, write_folder
from torch import Tensor
from torch.testing import assert_close

from pycl.functional import multimodal

TINY = ["--batch-size", "16", "--limit", "60", "--quiet"]
TIMES = {"images_per_second", "loss_share"}
FORMS = ("mv_info_nce", "mv_dhel", "poly_view", "pairwise_nt_xent")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("multimodal") as module:
        yield module


@pytest.fixture(autouse=True)
def drawn_to(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Short profiles, and in place of the dashboards, which take a second each, their paths."""
    paths: list[Path] = []
    monkeypatch.setattr(example.runs.step_profile, "ROUNDS", 1)
    monkeypatch.setattr(example.runs.viz, "dashboard", lambda rows, path: paths.append(path))
    with one_thread():
        yield paths


@pytest.mark.parametrize("form", FORMS)
def test_the_dense_loss_is_the_loss(example: ModuleType, form: str) -> None:
    there = example.modalities.lacking(3, 30, 0.4, seed=0)
    assert there.any(0).all()
    assert (there.sum(0) == 1).any()  # an instance without a term of its own
    generator = torch.Generator().manual_seed(0)
    rows = tuple(
        torch.randn(int(has.sum()), 8, generator=generator, dtype=torch.float64).requires_grad_() for has in there
    )
    named, present = (dict(zip("abc", x, strict=True)) for x in (rows, there))
    ours = multimodal(named, present, form=form, temperature=0.3)
    theirs = example.modalities.dense(rows, there, form, 0.3)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for one, other in zip(*(torch.autograd.grad(value, rows) for value in (ours, theirs)), strict=True):
        assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_who_lacks_what(example: ModuleType) -> None:
    there = example.modalities.lacking(3, 10000, 0.3, seed=1)
    # an instance that would lose all, as 0.3 ** 3 of them, keeps one
    assert_close(there.double().mean(1), torch.full((3,), 0.7 + 0.3**3 / 3, dtype=torch.float64), rtol=0, atol=0.02)
    assert there.any(0).all()
    assert example.modalities.lacking(3, 50, 0.0, seed=1).all()
    assert (example.modalities.lacking(3, 50, 0.999, seed=1).sum(0) == 1).all()
    assert torch.equal(there, example.modalities.lacking(3, 10000, 0.3, seed=1))
    assert not torch.equal(there, example.modalities.lacking(3, 10000, 0.3, seed=2))


def test_arms_see_what_they_say(example: ModuleType) -> None:
    args = example.parse(["--missing", "0.4", "--epochs", "7", "--batch-size", "10", "--evaluate-every", "2"])
    found = {}
    for arm in example.ARMS:
        args.arm = arm
        found[arm] = example.chosen(100, args)
    (incomplete, there), (complete, same), (whole, everything) = found.values()
    assert torch.equal(there, same)
    assert len(incomplete) == len(whole) == 100
    assert everything.all()
    assert torch.equal(complete, there.all(0).nonzero().squeeze(1))
    assert 10 < len(complete) < 40


def test_arms_take_the_same_number_of_steps(example: ModuleType) -> None:
    for arm in example.ARMS:
        args = example.parse(["--missing", "0.4", "--epochs", "7", "--batch-size", "10", "--arm", arm])
        (args.arm,) = args.arm
        kept = len(example.chosen(100, args)[0])
        args = example.as_many_steps(args, 100)
        assert min(args.epochs * (kept // 10), args.max_steps) == 70


def test_nothing_missing_is_looked_at(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch holds the rows that are there, and the loss is as it is with others in the place of the missing ones."""
    args = example.parse(["--missing", "0.5", "--limit", "60"])
    args.arm = "incomplete"
    data = example.images.load(args)
    task = example.Modalities(data, example.caption(data), args)
    monkeypatch.setattr(task, "augment", torch.nn.Identity())
    rows = torch.arange(30)
    batch = task.batch(rows)
    assert torch.equal(batch.there, task.there[:, :30])
    for x, has in zip(batch.rows, batch.there, strict=True):
        assert len(x) == has.sum() < 30
    assert_close(batch.rows[0], data.train.images[rows[batch.there[0]]].float() / 255)
    z = task.eval().embed(batch)
    wide = []
    for x, has in zip(z, batch.there, strict=True):
        wide.append(torch.randn(30, x.shape[1], generator=torch.Generator().manual_seed(3)))
        wide[-1][has] = x
    named, present = (dict(zip(example.NAMES, x, strict=True)) for x in (wide, batch.there))
    assert_close(task.loss(z, batch), multimodal(named, present, form=args.form, temperature=args.temperature))


def test_edges_are_where_brightness_changes(example: ModuleType) -> None:
    x = torch.zeros(1, 3, 16, 16)
    x[..., 8:] = 1.0
    found = example.edges(x)
    assert found.shape == (1, 1, 16, 16)
    assert found[..., 7:9].min() > 0.1
    assert found[..., 2:6].max() < 0.01


def test_all_arms_from_start_to_end(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn_to: list[Path]
) -> None:
    summary = example.main([*TINY, "--max-steps", "2", "--seeds", "2", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "recall at 10 (%)" in shown
    assert "edges → caption" in shown
    assert "the loss in plain torch" in shown
    check_picture(tmp_path / "recall.png")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert written["run"]["seeds"] == [0, 1]
    assert list(written["trainings"]) == ["incomplete", "complete", "whole"]
    assert len(drawn_to) == len(set(drawn_to)) == 6
    assert written["instances"]["complete"] < written["instances"]["whole"] == 60
    for stages in written["trainings"].values():
        assert all(map(math.isfinite, stages["last_loss"]))
        for way in example.WAYS:
            r1, r5, r10 = (stages["after"][f"{way}_r{k}"][0] for k in (1, 5, 10))
            assert 0 <= r1 <= r5 <= r10 <= 1


def test_a_folder_in_colour_and_another_form(example: ModuleType, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "squares", colour=True)
    arguments = ["--data-root", str(root), "--image-size", "16", "--arm", "incomplete", "--form", "poly_view"]
    summary = example.main([*TINY, *arguments, "--epochs", "2", "--missing", "0.2", "--out", str(tmp_path / "out")])
    assert summary["data"] == {"name": "squares", "train": 16, "test": 4, "classes": 2, "missing": 0.2}


def test_a_run_that_is_resumed_is_the_uninterrupted_one(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TINY, "--arm", "complete", "--max-steps", "4", "--checkpoint-every", "2", "--epochs", "3"]
    example.main([*arguments, "--out", str(tmp_path / "whole")])
    batch, seen = example.Modalities.batch, []

    def killed(self: Any, rows: Tensor) -> Any:
        seen.append(rows)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return batch(self, rows)

    monkeypatch.setattr(example.Modalities, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        example.main([*arguments, "--out", str(tmp_path / "parts")])
    monkeypatch.undo()
    example.main([*arguments, "--resume", "auto", "--out", str(tmp_path / "parts")])
    logs, states = [], []
    for folder in ("whole", "parts"):
        lines = (tmp_path / folder / "log.jsonl").read_text().splitlines()
        logs.append([{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines])
        states.append(torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True))
    assert logs[0] == logs[1]
    assert states[0]["task"].keys() == states[1]["task"].keys()
    assert all(torch.equal(states[0]["task"][name], states[1]["task"][name]) for name in states[0]["task"])


def test_a_batch_without_a_modality_is_refused(example: ModuleType, tmp_path: Path) -> None:
    arguments = ["--batch-size", "2", "--limit", "60", "--missing", "0.9", "--arm", "incomplete", "--quiet"]
    with pytest.raises(SystemExit, match=r"--missing 0\.9: a batch has no \w+; take a larger --batch-size"):
        example.main([*arguments, "--out", str(tmp_path)])


def test_no_complete_instance_is_refused(example: ModuleType, tmp_path: Path) -> None:
    arguments = ["--limit", "20", "--missing", "0.95", "--arm", "complete", "--quiet", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="instances to train on; a contrast takes two"):
        example.main(arguments)


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_a_share_outside_of_0_to_1_is_refused(
    example: ModuleType, capsys: pytest.CaptureFixture[str], share: str
) -> None:
    with pytest.raises(SystemExit):
        example.parse(["--missing", share])
    assert "--missing must be at least 0 and below 1" in capsys.readouterr().err
