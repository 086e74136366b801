# SPDX-License-Identifier: Apache-2.0
"""pycl's callback in the Trainer of transformers and in that of sentence-transformers, on models of one layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.example_runner import check_picture, one_thread
from parity import peer
from sentence_cases import tiny_encoder
from torch import Tensor, nn

import pycl
from pycl.viz import RunLog, measure, read

IMAGES = torch.sin(torch.arange(24 * 6.0)).view(24, 6)


@pytest.fixture(autouse=True)
def trainers() -> Iterator[None]:
    peer("transformers")
    peer("accelerate")
    with one_thread():
        yield


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 4))
        self.loss = pycl.NTXentLoss(0.5, learnable_temperature=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss([self.encoder(x), self.encoder(x)])}


def probe(model: Model) -> list[Tensor]:
    return [model.encoder(IMAGES), model.encoder(IMAGES + 0.1)]


def noisy_probe(model: Model) -> list[Tensor]:
    return [model.encoder(IMAGES + 0.1 * torch.randn_like(IMAGES)) for _ in range(2)]


def settings(folder: Path, **options: Any) -> Any:
    from transformers import TrainingArguments

    common: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**(common | options))


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    from transformers import Trainer

    data = [{"x": x} for x in IMAGES]
    return Trainer(Model(), settings(folder, **options), train_dataset=data, callbacks=list(callbacks))


def callback(given: Any = probe, **options: Any) -> Any:
    from pycl.viz.transformers import ContrastiveCallback

    return ContrastiveCallback(given, **options)


def test_rows_and_the_log_history(tmp_path: Path) -> None:
    log, picture = tmp_path / "run.jsonl", tmp_path / "run.png"
    training = trainer(tmp_path, callback(log_path=log, dashboard=picture))
    training.train()
    rows, history = read(log), [row for row in training.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, logged in zip(rows, history, strict=True):
        assert row["loss"] == logged["loss"]
        assert row["learning_rate"] == logged["learning_rate"]
        for name in ("alignment", "uniformity", "effective_rank", "temperature"):
            assert logged[f"contrastive/{name}"] == row[name]
        assert "contrastive/positives" not in logged
        assert row["images_per_second"] > 0
    assert rows[-1]["temperature"] == training.model.loss.temperature.item() != rows[0]["temperature"]
    with torch.no_grad():
        expected = measure(probe(training.model.eval()))
    assert {name: rows[-1][name] for name in expected} == expected  # dropout was off
    check_picture(picture)


def test_the_training_is_the_one_without_the_callback(tmp_path: Path) -> None:
    """Modes and random numbers are put back, although the probe draws some; a module that was frozen stays so."""
    with_it, without = trainer(tmp_path, callback(noisy_probe)), trainer(tmp_path)
    frozen: list[bool] = []

    class Freezing(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            return super().train(False)

        def forward(self, x: Tensor) -> Tensor:
            frozen.append(self.training)
            return super().forward(x)

    for training in (with_it, without):
        torch.manual_seed(3)
        training.model.encoder[2] = Freezing(8, 4)
        training.train()
    assert not any(frozen)
    for mine, theirs in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_reporters_get_the_numbers_where_it_comes_first(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[set[str]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.seen.append({name for name in logs if name.startswith("contrastive/")})

    first, last = Reporter(), Reporter()
    training = trainer(tmp_path, first, callback(), max_steps=1)
    training.train()
    assert first.seen[0] == set()
    training = trainer(tmp_path, last, max_steps=1)
    callback().add_to(training)
    training.train()
    assert "contrastive/alignment" in last.seen[0]
    assert "contrastive/alignment" in training.state.log_history[0]


def test_every_n_logs(tmp_path: Path) -> None:
    trainer(tmp_path, callback(every_n_logs=2, log_path=tmp_path / "run.jsonl"), logging_steps=1).train()
    assert [row["step"] for row in read(tmp_path / "run.jsonl")] == [2, 4, 6]


def test_a_probe_may_give_the_arguments_of_measure(tmp_path: Path) -> None:
    ids, codes = torch.arange(24) % 3, torch.eye(3)[torch.arange(24) % 3]

    def found(model: Model) -> dict[str, Any]:
        return {"embeddings": probe(model), "ids": ids, "codes": codes, "temperature": 0.2, "bins": 8}

    trainer(tmp_path, callback(found, log_path=tmp_path / "run.jsonl"), max_steps=1).train()
    (row,) = read(tmp_path / "run.jsonl")
    assert sum(row["positives"]) == 48 * 15
    assert row["perplexity"] == pytest.approx(3.0)
    assert row["temperature"] == 0.2


def test_a_resumed_training_goes_on_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, callback(log_path=log), max_steps=3, **options).train()
    RunLog(log).append({"step": 4, "loss": -1.0})
    trainer(tmp_path, callback(log_path=log), **options).train(resume_from_checkpoint=True)
    rows = read(log)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] > 0 for row in rows)
    with pytest.raises(FileExistsError, match=r"log_path: .* has the rows of another run"):
        trainer(tmp_path, callback(log_path=log)).train()


@pytest.mark.parametrize("learnable", [True, False])
def test_sentence_transformers(learnable: bool, tmp_path: Path) -> None:
    peer("sentence_transformers")
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    texts = (["a man runs", "a dog eats", "a cat is red"], ["man runs", "dog eats apple", "cat is red"])
    model = tiny_encoder(tmp_path)

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.nt_xent = pycl.NTXentLoss(0.1, learnable_temperature=learnable)

        def forward(self, features: Any, labels: Any) -> Tensor:
            return self.nt_xent([self.model(part)["sentence_embedding"] for part in features])

    def encoded(given: Any) -> list[Tensor]:
        return [given.encode(part, convert_to_tensor=True) for part in texts]

    loss = Pairs()
    common = settings(tmp_path).to_dict()
    names = ("output_dir", "max_steps", "per_device_train_batch_size", "logging_steps", "save_strategy", "report_to")
    arguments = SentenceTransformerTrainingArguments(**{name: common[name] for name in names}, use_cpu=True)
    training = SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"anchor": texts[0] * 4, "positive": texts[1] * 4}),
        loss=loss,
        callbacks=[callback(encoded, loss=loss, log_path=tmp_path / "run.jsonl")],
    )
    training.train()
    rows = read(tmp_path / "run.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert len({row["temperature"] for row in rows}) == (6 if learnable else 1)
    assert len({row["alignment"] for row in rows}) == 6
    assert training.state.log_history[0]["contrastive/alignment"] == rows[0]["alignment"]


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "probe": ({"given": torch.zeros(2, 3, 4)}, TypeError, "probe must be a function of the model, got Tensor"),
    "every": ({"every_n_logs": 0}, ValueError, "every_n_logs must be at least 1"),
    "picture": ({"dashboard": "run.png"}, ValueError, "dashboard needs log_path"),
    "loss": ({"loss": nn.Linear(1, 1)}, TypeError, "loss must have a temperature, got Linear without one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        callback(**options)
