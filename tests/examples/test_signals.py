# SPDX-License-Identifier: Apache-2.0
"""Generated signals in miniature: what they are made of, their views, and both papers' objectives on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread
from torch import Tensor

from pycl import metrics

TINY = ["--train-size", "48", "--test-size", "24", "--batch-size", "16", "--epochs", "2", "--quiet", "--mine-from", "1"]
TINY += ["--queue-size", "40"]
CASES = [("eeg", "mvcnet"), ("eeg", "nt_xent"), ("skeleton", "hiclr"), ("skeleton", "nt_xent")]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("signals") as module:
        yield module


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


def make_task(example: ModuleType, kind: str, loss: str) -> Any:
    args = example.parse([*TINY, "--signals", kind, "--loss", loss])
    args.loss = loss
    torch.manual_seed(0)
    return example.TASKS[kind][loss](example.signals.generate(kind, args.train_size, args.test_size), args)


# ---- what is generated


@pytest.mark.parametrize(("kind", "shape"), [("eeg", (8, 128)), ("skeleton", (42, 48))])
def test_signals_are_the_same_every_time_and_raw_they_say_little(
    example: ModuleType, kind: str, shape: tuple[int, int]
) -> None:
    data = example.signals.generate(kind, 240, 240)
    again = example.signals.generate(kind, 240, 240)
    assert data.train.x.shape == (240, *shape)
    assert torch.equal(data.train.x, again.train.x)
    assert not torch.equal(data.dev.x, data.test.x)
    for split in data.splits().values():
        assert split.y.bincount().tolist() == [240 // data.classes] * data.classes
    found = [(split.x.flatten(1), split.y) for split in (data.train, data.test)]
    assert metrics.linear_probe_accuracy(*found[0], *found[1]) < 2.5 / data.classes


def test_a_class_is_a_band_and_a_lag(example: ModuleType) -> None:
    """Found again without what the generator knows: the strongest band, and the sides' coherence there."""
    made = example.signals
    split = made.eeg(600, 3)
    spectrum = torch.fft.rfft(split.x)
    frequencies = torch.arange(spectrum.shape[-1]) * made.RATE / made.SAMPLES
    near = (frequencies - torch.tensor(made.BANDS)[:, None]).abs() <= 1.5
    power = spectrum.abs().square().sum(1)
    power = power / power.mean(0)  # the noise has more of it at low frequencies
    band = torch.stack([power[:, bins].mean(1) for bins in near], 1).argmax(1)
    assert (band == split.y // 2).double().mean() > 0.6  # 1/3 by chance; the other rhythm misleads
    left, right = spectrum.unflatten(1, (2, -1)).mean(2).unbind(1)
    cross = (left * right.conj())[torch.arange(600)[:, None], near.long().topk(5, 1).indices[split.y // 2]].sum(1)
    apart = cross.angle().abs()
    with_lag, without = (apart[split.y % 2 == lag].median() for lag in (1, 0))
    assert without < math.pi / 6
    assert abs(with_lag - math.pi / 2) < math.pi / 6


def test_limbs_move_as_their_class_says(example: ModuleType) -> None:
    """Forward is where the feet swing, however the clip is turned."""
    made = example.signals
    split = made.skeleton(400, 3)
    joints = split.x.unflatten(1, (3, made.JOINTS))[:, [0, 2]].transpose(1, 2)  # [N, J, 2, T], upon the floor
    forward = torch.linalg.svd(joints[:, [10, 13]].transpose(1, 2).flatten(2), full_matrices=False).U[:, :, 0]
    across = torch.stack([-forward[:, 1], forward[:, 0]], 1)
    ahead, aside = (torch.einsum("njdt,nd->njt", joints, way) for way in (forward, across))

    def together(one: Tensor, other: Tensor) -> Tensor:
        return torch.cosine_similarity(one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True))

    stepping, sideways, alternating = (split.y & bit > 0 for bit in (made.STEPPING, made.SIDEWAYS, made.ALTERNATING))
    feet = together(ahead[:, 10], ahead[:, 13])
    assert feet[stepping].median() < -0.5 < 0.5 < feet[~stepping].median()
    hands = together(ahead[:, 4], ahead[:, 7])
    assert hands[~sideways & alternating].median() < -0.5 < 0.5 < hands[~sideways & ~alternating].median()
    wide = (aside[:, [4, 7]].var(-1) / ahead[:, [4, 7]].var(-1)).mean(1)
    assert wide[~sideways].median() < 0.5 < 2 < wide[sideways].median()


# ---- views


def test_views_of_a_trial(example: ModuleType) -> None:
    views, x = example.signal_views, example.signals.eeg(64, 0).x
    torch.manual_seed(0)
    stacked = views.eeg_views(x)
    assert stacked.shape == (4, 64, 8, 128)
    assert torch.equal(stacked[0], x)
    assert torch.equal(stacked[1].sort(-1).values, x.sort(-1).values)  # the same samples, elsewhere
    spectra = [torch.fft.rfft(z).abs() for z in (x, stacked[1])]
    torch.testing.assert_close(*spectra, atol=1e-3, rtol=1e-4)
    direction = torch.cosine_similarity(stacked[3], x, dim=-1)
    mirrored = torch.cosine_similarity(stacked[3], torch.cat([x[:, 4:], x[:, :4]], 1), dim=-1)
    torch.testing.assert_close(torch.maximum(direction, mirrored).amin(1), torch.ones(64))
    assert 10 < (mirrored.amin(1) > 0.999).sum() < 54

    time = torch.arange(128) / example.signals.RATE
    wave = (2 * math.pi * 10 * time).sin().expand(64, 8, -1)
    moved = views.frequency_view(wave)
    crossings = (moved[..., 1:] * moved[..., :-1] < 0).sum(-1).double() / 2 / time[-1]
    assert (crossings - 10).abs().max() < 1.3
    assert crossings[:, 0].unique().numel() > 2
    torch.testing.assert_close(moved.square().mean(-1), wave.square().mean(-1), atol=0.06, rtol=0)


def test_augmentations_grow(example: ModuleType) -> None:
    views, x = example.signal_views, example.signals.skeleton(64, 0).x
    torch.manual_seed(0)
    stacked = views.growing_views(x)
    assert stacked.shape == (3, 64, 42, 48)
    assert stacked.isfinite().all()
    still = [(part.unflatten(1, (3, -1)) == 0).all(-1).double().mean((1, 2)) for part in stacked]
    assert still[0].sum() == still[1].sum() == 0
    assert 0.25 < still[2].mean() < 0.65  # a third of the joints, and every second time a third of what is left
    joints = x.unflatten(1, (3, -1)).transpose(1, 2)
    assert torch.equal(views._mirrored(views._mirrored(joints)), joints)
    assert torch.equal(views._mirrored(joints)[:, 2, 0], -joints[:, 5, 0])
    turned = example.signals.turned(joints, torch.full((64,), math.pi / 2))
    torch.testing.assert_close(turned[:, :, 0], joints[:, :, 2])


# ---- training


@pytest.mark.parametrize(
    ("flags", "losses"),
    [([], ["mvcnet", "nt_xent"]), (["--signals", "skeleton"], ["hiclr", "nt_xent"]), (["--loss", "hiclr"], ["hiclr"])],
)
def test_from_start_to_end(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], losses: list[str]
) -> None:
    summary = example.main([*TINY, *flags, "--seeds", "2", "--out", str(tmp_path)])
    assert summary is not None
    shown = capsys.readouterr().out
    assert "generated signals" in shown
    assert "the loss in plain torch" in shown
    check_picture(tmp_path / "signals.png")
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    trainings = summary["trainings"]
    assert list(trainings) == losses
    stages = [trained[stage] for trained in trainings.values() for stage in ("before", "after")]
    for found in (summary["raw"], *stages):
        assert all(0 <= found[f"{split}_{key}"][0] <= 1 for split in ("dev", "test") for key in ("knn", "linear"))
    for trained in trainings.values():
        assert len(trained["last_loss"]) == 2
        assert all(math.isfinite(value) for value in trained["last_loss"])
    again = example.main([*TINY, *flags, "--seeds", "2", "--out", str(tmp_path), "--resume", "auto"])
    for loss in losses:
        assert again["trainings"][loss]["after"] == trainings[loss]["after"]  # nothing was left to do


@pytest.mark.parametrize(("kind", "loss"), CASES[:3])
def test_a_resumed_run_is_the_uninterrupted_one(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, loss: str
) -> None:
    """Of hiclr also the slow encoder, the queue, and that neighbours are positives from the second epoch on."""
    flags = [*TINY, "--signals", kind, "--loss", loss, "--checkpoint-every", "2", "--evaluate-every", "1"]
    example.main([*flags, "--out", str(tmp_path / "whole")])
    update = example.TASKS[kind][loss].before_update

    def stop(self: Any, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(example.TASKS[kind][loss], "before_update", stop)
        with pytest.raises(KeyboardInterrupt):
            example.main([*flags, "--out", str(tmp_path / "parts")])
    example.main([*flags, "--out", str(tmp_path / "parts"), "--resume", "auto"])

    timing = {"images_per_second", "loss_share"}
    logs, states = [], []
    for name in ("whole", "parts"):
        folder = tmp_path / name
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in row.items() if key not in timing} for row in rows])
        states.append(torch.load(folder / "checkpoint.pt", weights_only=True))
    assert logs[0] == logs[1]
    assert sum("loss" in row for row in logs[0]) == 6
    assert ("queue.features" in states[0]["task"]) == (loss == "hiclr")
    for name, tensor in states[0]["task"].items():
        assert torch.equal(tensor, states[1]["task"][name]), name


@pytest.mark.parametrize(("kind", "loss"), CASES)
@pytest.mark.parametrize("mine", [False, True])
def test_the_dense_loss_is_the_same(example: ModuleType, kind: str, loss: str, mine: bool) -> None:
    task = make_task(example, kind, loss).double()
    task.data = task.data._replace(train=task.data.train._replace(x=task.data.train.x.double()))
    task.mine = mine
    batch = task.batch(torch.arange(10)).double()
    embeddings = task.embed(batch)
    asking = [z for z in (embeddings if isinstance(embeddings, tuple) else (embeddings,)) if z.requires_grad]
    assert len(asking) == {"nt_xent": 1, "mvcnet": 2, "hiclr": 3}[loss]
    values = task.loss(embeddings, batch), task.dense_loss(embeddings, batch)
    torch.testing.assert_close(*values)
    found, dense = (torch.autograd.grad(value, asking, retain_graph=True) for value in values)
    torch.testing.assert_close(found, dense)
    assert all(gradient.abs().max() > 0 for gradient in found)


def test_the_slow_encoder_and_its_queue(example: ModuleType) -> None:
    task = make_task(example, "skeleton", "hiclr")
    task.before_step(0)
    assert not task.mine
    slow, fast = task.slow.module[1][0].weight, task.projector[0].weight
    assert not slow.requires_grad
    assert torch.equal(slow, fast)
    start = slow.clone()
    with torch.no_grad():
        fast += 1
    task.before_step(3)
    assert task.mine  # 48 clips in batches of 16: the second epoch begins
    torch.testing.assert_close(slow, start + (1 - task.args.momentum))
    task.embed(task.batch(torch.arange(16)))
    task.before_update(3)
    torch.testing.assert_close(task.queue.features[:16], torch.nn.functional.normalize(task.key))
    assert int(task.queue.pointer) == 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss", "mvcnet", "hiclr"], "mvcnet is for --signals eeg, and hiclr for --signals skeleton"),
        (["--loss", "hiclr", "--signals", "eeg"], "mvcnet is for --signals eeg, and hiclr for --signals skeleton"),
        (["--data-root", "x"], "these signals are generated"),
        (["--momentum", "1"], "--momentum must be from 0 to below 1, got 1.0"),
        (["--queue-size", "0"], "--queue-size must be at least 1, got 0"),
        (["--train-size", "8"], "--train-size must be at least 16, got 8"),
        (["--temperature", "0"], "--temperature must be positive, got 0.0"),
    ],
)
def test_bad_flags(example: ModuleType, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(flags)
    assert message in capsys.readouterr().err
