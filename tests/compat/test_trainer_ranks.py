# SPDX-License-Identifier: Apache-2.0
"""The Trainers of transformers and of sentence-transformers on two processes: a step is that of one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import GUIDE, launched, names_of
from parity import embeddings, peer
from sentence_cases import tiny_encoder
from torch import Tensor, nn

import pycl

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="runs in a checkout")
BATCH = 8  # of all ranks together
PAGE = "from transformers import Trainer"


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    for library in ("accelerate", "transformers", "sentence_transformers"):
        peer(library)


def views() -> list[Tensor]:
    x = [embeddings(20, 8, seed, torch.float32) for seed in (1, 2)]
    return [x[0], x[0] + 0.7 * x[1]]


ARGUMENTS: dict[str, Any] = {
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "learning_rate": 0.1,
    "optim": "sgd",
    "max_grad_norm": 1e9,
    "seed": 0,
}


def history(trainer: Any) -> list[tuple[float, float]]:
    """Loss and norm of the gradient at every step."""
    return [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]


def transformers_trainer(world: int, rank: int, folder: str) -> dict[str, Any]:
    from pycl.viz.transformers import ContrastiveCallback

    names, log = names_of(PAGE), Path(folder) / f"{world}-{rank}.jsonl"

    def probe(model: Any) -> list[Tensor]:
        return [model.encoder(x) for x in views()]

    watch = ContrastiveCallback(probe, log_path=log)
    names["Trainer"] = partial(names["Trainer"], callbacks=[watch])
    torch.manual_seed(0)
    data = [{"view1": x, "view2": y} for x, y in zip(*views(), strict=True)]
    trainer = names["train"](data, output_dir=folder, per_device_train_batch_size=BATCH // world, **ARGUMENTS)
    log_temperature = trainer.model.loss.log_temperature.detach().clone()
    return {"history": history(trainer), "log temperature": log_temperature}


def with_labels(world: int, folder: str, share: bool) -> list[tuple[float, float]]:
    """A loss that is handed to the Trainer, of batches with labels, which the Trainer counts."""
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"z": self.encoder(x)}

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return pycl.functional.sup_con([outputs["z"]], labels, temperature=0.5, group="world")

    data = [{"x": x, "labels": k % 3} for k, x in enumerate(views()[0])]
    options = ARGUMENTS | {"max_steps": 1, "average_tokens_across_devices": share, "label_names": ["labels"]}
    arguments = TrainingArguments(folder, per_device_train_batch_size=BATCH // world, **options)
    trainer = Trainer(Model(), arguments, train_dataset=data, compute_loss_func=loss)
    trainer.train()
    return history(trainer)


NOUNS, VERBS = ("man", "woman", "dog", "cat"), ("runs", "eats", "is red", "is blue")


def sentence_trainer(world: int, name: str, folder: str, **options: Any) -> list[tuple[float, float]]:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    from pycl.compat.sentence_transformers import losses

    words = [(noun, verb) for noun in NOUNS for verb in VERBS]
    columns = {"anchor": [f"a {n} {v}" for n, v in words], "positive": [f"{n} {v} apple" for n, v in words]}
    model = SentenceTransformer(f"{folder}/tiny", device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each rank draws its own
    loss = getattr(losses, name)(model, gather_across_devices=True, **options)
    arguments = SentenceTransformerTrainingArguments(
        folder, per_device_train_batch_size=BATCH // world, dataloader_drop_last=True, **ARGUMENTS
    )
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss)
    trainer.train()
    return history(trainer)


def on_rank(rank: int, world: int, folder: str) -> dict[str, Any]:
    cached = {"mini_batch_size": 3}
    return {
        "trainer": transformers_trainer(world, rank, folder),
        "labels": {share: with_labels(world, folder, share) for share in (True, False)},
        "ranking": sentence_trainer(world, "MultipleNegativesRankingLoss", folder),
        "cached ranking": sentence_trainer(world, "CachedMultipleNegativesRankingLoss", folder, **cached),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    peer("sentence_transformers")
    made = tmp_path_factory.mktemp("trainers")
    tiny_encoder(made).save(str(made / "tiny"), create_model_card=False)
    return made


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return launched(2, on_rank, str(folder))


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return launched(1, on_rank, str(folder))[0]


@pytest.mark.parametrize("name", ["ranking", "cached ranking"])
def test_the_trainer_of_sentence_transformers(name: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for rank in two:
        assert [x for row in rank[name] for x in row] == pytest.approx([x for row in one[name] for x in row], rel=1e-4)


def test_the_trainer_of_transformers(folder: Path, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    from pycl.viz import read

    expected = [x for row in one["trainer"]["history"] for x in row]
    for rank in two:
        assert [x for row in rank["trainer"]["history"] for x in row] == pytest.approx(expected, rel=1e-4)
    assert sorted(path.name for path in folder.glob("*.jsonl")) == ["1-0.jsonl", "2-0.jsonl"]  # rank 0 alone reports
    rows, alone = read(folder / "2-0.jsonl"), read(folder / "1-0.jsonl")
    temperatures = [row["temperature"] for row in rows]
    assert temperatures == pytest.approx([row["temperature"] for row in alone], rel=1e-5)
    assert temperatures[-1] == pytest.approx(two[1]["trainer"]["log temperature"].exp().item(), rel=1e-6)
    assert temperatures[0] != temperatures[1]


def test_a_loss_for_the_trainer_and_labels(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """What the page warns of: the Trainer multiplies such a loss by the number of processes, unless told not to."""
    [(loss, norm)] = one["labels"][True]
    assert one["labels"][False] == one["labels"][True]
    assert two[0]["labels"][False][0] == pytest.approx((loss, norm), rel=1e-4)
    assert two[0]["labels"][True][0][1] == pytest.approx(2 * norm, rel=1e-4)
