# SPDX-License-Identifier: Apache-2.0
"""Images and captions in miniature: what captions say, the losses, runs that are resumed, and what is refused."""

from __future__ import annotations

import argparse
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

TINY = ["--batch-size", "16", "--limit", "60", "--quiet"]
TIMES = {"images_per_second", "loss_share"}
LOSSES = ("clip", "siglip", "wrong_captions", "hard_negatives", "vse++", "dbl")
ARGS = argparse.Namespace(temperature=0.1, margin=0.2, beta=0.5)


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("image_text") as module:
        yield module


@pytest.fixture(autouse=True)
def drawn_to(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Short profiles, and in place of the dashboards, which take a second each, their paths."""
    paths: list[Path] = []
    monkeypatch.setattr(example.runs.step_profile, "ROUNDS", 1)
    monkeypatch.setattr(example.runs.viz, "dashboard", lambda rows, path: paths.append(path))
    with one_thread():
        yield paths


# ---- captions


def dataset(example: ModuleType, images: Tensor, labels: list[int], classes: list[str]) -> Any:
    split = example.images.Split(images, torch.tensor(labels))
    return example.images.Dataset("made", split, split, classes)


def drawn(example: ModuleType) -> Any:
    """A red image of columns, a blue one with a light top, and two grey ones of slanted lines."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    columns = 100 + 100 * (x // 4 % 2)
    red = torch.stack([columns, torch.zeros_like(x), torch.zeros_like(x)])
    blue = torch.stack([torch.zeros_like(x), torch.zeros_like(x), torch.where(y < 10, 250, 40)])
    rising, falling = (((z // 4 % 2) * 200).expand(3, -1, -1) for z in (x + y, x - y))
    pictures = torch.stack([red, blue, rising, falling]).byte()
    return dataset(example, pictures, [0, 1, 1, 0], ["ant", "3"])


def test_facts_are_those_of_the_pixels(example: ModuleType) -> None:
    captioned = example.caption(drawn(example))
    said = [
        {fact.name: fact.phrases[value] for fact, value in zip(captioned.told, row, strict=True)}
        for row in captioned.train.facts.tolist()
    ]
    assert [s["name"][0] for s in said] == ["an ant", "the digit 3", "the digit 3", "an ant"]
    assert [s["colour"][0] for s in said] == ["red", "blue", "grey", "grey"]
    assert [s["lines"][0] for s in said] == ["vertical lines", "horizontal lines", "rising lines", "falling lines"]
    assert said[1]["light"][0] == "brightest at the top"
    assert [s["brightness"][0] for s in said[1:]] == ["dark", "half-lit", "half-lit"]  # thirds of these four images


def test_a_caption_states_its_facts_and_a_wrong_one_all_but_one(example: ModuleType) -> None:
    captioned = example.caption(drawn(example))
    train = captioned.train
    assert train.tokens.shape == train.wrong.shape == (4, 4, train.tokens.shape[-1])
    for n in range(len(train.facts)):
        for sentence in range(4):
            right, wrong = (
                [captioned.words[token] for token in tokens[n, sentence] if token]
                for tokens in (train.tokens, train.wrong)
            )
            stated = [
                [value for value, ways in enumerate(fact.phrases) if any(is_in(way, text) for way in ways)]
                for fact in captioned.told
                for text in (right, wrong)
            ]
            for value, here in zip(train.facts[n].tolist(), stated[::2], strict=True):
                assert value in here
            assert right != wrong
            missing = [v not in w for v, w in zip(train.facts[n].tolist(), stated[1::2], strict=True)]
            assert sum(missing) <= 1  # at most: "bluish" is in "greenish blue"'s neighbourhood of words, too
    assert train.texts == example.caption(drawn(example)).train.texts  # of one generator with its own seed


def is_in(phrase: str, words: list[str]) -> bool:
    return f" {phrase} ".replace("-", " ") in f" {' '.join(words)} "


def test_ids_are_equal_where_all_facts_are(example: ModuleType) -> None:
    pictures = drawn(example).train.images
    made = dataset(example, pictures[[0, 1, 0, 0]], [0, 1, 0, 1], ["ant", "bee"])
    ids = example.caption(made).train.ids.tolist()
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3


def test_images_of_one_channel_have_no_colour(example: ModuleType) -> None:
    grey = drawn(example).train.images[:, :1]
    captioned = example.caption(dataset(example, grey, [0, 1, 1, 0], ["0", "1"]))
    assert "colour" not in [fact.name for fact in captioned.told]
    assert captioned.train.facts.shape == (4, 5)
    assert all("colourless" in text for text in captioned.train.texts)


def test_the_text_tower_does_not_see_what_fills_up(example: ModuleType) -> None:
    torch.manual_seed(0)
    tower = example.TextTower(20, 12).eval()
    tokens = torch.randint(2, 20, (3, 7), dtype=torch.int32)
    filled = torch.nn.functional.pad(tokens, (0, 5))
    assert_close(tower(filled), tower(tokens))
    assert not torch.allclose(tower(tokens.flip(1)), tower(tokens))  # the order counts


def test_recall_counts_every_candidate_that_says_the_same(example: ModuleType) -> None:
    found = torch.tensor([[3, 0], [0, 1], [1, 0]])
    ids = torch.tensor([7, 8, 9, 7])
    recall = example.retrieval.recall(found, ids[:3], ids)
    assert recall == {"r1": pytest.approx(1 / 3), "r5": pytest.approx(2 / 3), "r10": pytest.approx(2 / 3)}


# ---- losses


@pytest.mark.parametrize("name", LOSSES)
def test_the_dense_loss_is_the_loss(example: ModuleType, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    number = {"wrong_captions": 3, "dbl": 4}.get(name, 2)
    z = torch.randn(number, 24, 8, generator=generator, dtype=torch.float64)
    z[1] = z[0] + z[1]  # pairs that are closer than chance
    z = torch.nn.functional.normalize(z, dim=2).requires_grad_()
    loss = example.LOSSES[name](ARGS).double()
    learned = list(loss.parameters())
    assert len(learned) == {"clip": 1, "wrong_captions": 1, "siglip": 2}.get(name, 0)
    values = [loss(*z), loss.dense(*z)]
    assert_close(*values, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(value, [z, *learned]) for value in values)
    assert ours[0].abs().max() > 1e-4
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_the_learned_scale_starts_at_the_temperature_and_stays_below_100(example: ModuleType) -> None:
    loss = example.LOSSES["siglip"](ARGS)
    assert loss.temperature.item() == pytest.approx(0.1)
    loss.log_scale.data.fill_(7.0)
    loss.clamp()
    assert loss.temperature.item() == pytest.approx(0.01)
    example.LOSSES["vse++"](ARGS).clamp()  # has nothing to clamp


# ---- runs


def test_all_losses_from_start_to_end(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn_to: list[Path]
) -> None:
    summary = example.main([*TINY, "--loss", *LOSSES, "--max-steps", "2", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "image → caption, recall (%)" in shown
    assert "the loss in plain torch" in shown
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert written["data"]["train"] == written["data"]["test"] == 60
    assert tuple(written["trainings"]) == LOSSES
    assert drawn_to == [tmp_path / name / "dashboard.png" for name in LOSSES]
    for name, stages in written["trainings"].items():
        assert math.isfinite(stages["last_loss"][0])
        for way in ("image_to_text", "text_to_image"):
            r1, r5, r10 = (stages["after"][f"{way}_r{k}"][0] for k in (1, 5, 10))
            assert 0 <= r1 <= r5 <= r10 <= 1
        check_picture(tmp_path / name / "sheet.png")
    rows = [json.loads(line) for line in (tmp_path / "clip" / "log.jsonl").read_text().splitlines()]
    assert next(row["temperature"] for row in rows if "loss" in row) < 0.11  # the learned one


def test_it_learns_from_a_folder(example: ModuleType, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "squares", colour=True)
    arguments = ["--data-root", str(root), "--image-size", "16", "--epochs", "40", "--loss", "clip", "--seeds", "2"]
    summary = example.main([*TINY, *arguments, "--evaluate-every", "40", "--out", str(tmp_path / "out")])
    assert summary["data"]["name"] == "squares"
    assert summary["run"]["seeds"] == [0, 1]
    assert max(summary["trainings"]["clip"]["last_loss"]) < 0.75 * math.log(16)  # which is where nothing is learnt
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"seed-0", "seed-1", "summary.json"}


def test_a_run_that_is_resumed_is_the_uninterrupted_one(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TINY, "--loss", "siglip", "--max-steps", "4", "--checkpoint-every", "2", "--evaluate-every", "1"]
    example.main([*arguments, "--out", str(tmp_path / "whole")])
    batch, seen = example.ImageText.batch, []

    def killed(self: Any, rows: Tensor) -> Any:
        seen.append(rows)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return batch(self, rows)

    monkeypatch.setattr(example.ImageText, "batch", killed)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "0"], "--margin must be positive, got 0.0"),
        (["--beta", "-1"], "--beta must not be negative, got -1.0"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--loss", "triplet"], "invalid choice: 'triplet'"),
    ],
)
def test_nonsense_is_refused(
    example: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        example.parse(arguments)
    assert message in capsys.readouterr().err


def test_no_images_is_one_line(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--data-root: .* has no folder 'train'"):
        example.main(["--data-root", str(tmp_path), "--out", str(tmp_path / "out")])


def test_dbl_is_of_one_rank(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    of_two = example.ranks.Ranks(0, 2, torch.device("cpu"))
    monkeypatch.setattr(example.ranks, "start", lambda _: nullcontext(of_two))
    with pytest.raises(SystemExit, match="--loss dbl runs on one rank"):
        example.main(["--loss", "clip", "dbl"])
