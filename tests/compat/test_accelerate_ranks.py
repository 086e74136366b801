# SPDX-License-Identifier: Apache-2.0
"""accelerate and Hugging Face's Trainers on two processes: the first step is that of one process with all of a batch.

And what accelerate's data loaders hand to the ranks where the batches do not come out even.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import launched, names_of, program
from parity import embeddings, peer
from sentence_cases import tiny_encoder
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pycl

ROWS, BATCH = 20, 8
ACCELERATE, TRAINER = "from accelerate import Accelerator", "from transformers import Trainer"


@pytest.fixture(autouse=True)
def installed() -> None:
    for library in ("accelerate", "transformers", "lightly.loss", "open_clip.loss", "sentence_transformers"):
        peer(library)


def views() -> list[Tensor]:
    x = [embeddings(ROWS, 8, seed) for seed in (1, 2)]
    return [x[0], x[0] + 0.7 * x[1]]


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(8, 4).double()


def gradients(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for module in modules for p in module.parameters()]


# ---- accelerate


def of_the_page(world: int) -> list[Tensor]:
    """The page's training, whose weights say what gradients it had."""
    names, model = names_of(ACCELERATE), encoder()
    names["Accelerator"] = lambda: prepared()
    names["train"](model, DataLoader(TensorDataset(*views()), batch_size=BATCH // world, drop_last=True))
    return [p.detach().clone() for p in model.parameters()]


def prepared(**options: Any) -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True, **options)


def stepped(world: int, step: Callable[[Any, Any, list[Tensor]], Tensor]) -> list[Tensor]:
    """Value and gradients of the first batch."""
    accelerator, model = prepared(), encoder()
    ready, loader = accelerator.prepare(model, DataLoader(TensorDataset(*views()), batch_size=BATCH // world))
    value = step(accelerator, ready, next(iter(loader)))
    if value.requires_grad:
        accelerator.backward(value)
    return [value.detach(), *gradients(model)]


def cached(accelerator: Any, model: Any, batch: list[Tensor]) -> Tensor:
    names = {"pycl": pycl, "loss": pycl.NTXentLoss(0.5, group="world"), "encoder": model, "views": batch}
    exec(program("value = pycl.cached_step"), names | {"accelerator": accelerator}, found := {})
    return found["value"]


def pairs(loss: Callable[..., Tensor]) -> Callable[[Any, Any, list[Tensor]], Tensor]:
    return lambda _, model, batch: loss(*model(torch.cat(batch)).chunk(2))


def lightly(accelerator: Any, model: Any, batch: list[Tensor]) -> Tensor:
    from pycl.compat.lightly import NTXentLoss

    return pairs(NTXentLoss(0.3, gather_distributed=True))(accelerator, model, batch)


def open_clip(accelerator: Any, model: Any, batch: list[Tensor]) -> Tensor:
    from pycl.compat.open_clip import ClipLoss

    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    loss, scale = ClipLoss(local_loss=True, gather_with_grad=True, **ranks), torch.tensor(4.0)
    z = [nn.functional.normalize(x, dim=1) for x in model(torch.cat(batch)).chunk(2)]
    return loss(*z, scale)


def sentences(accelerator: Any, model: Any, batch: list[Tensor]) -> Tensor:
    from pycl.compat.sentence_transformers import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(None, scale=4.0, gather_across_devices=True)
    return loss.compute_loss_from_embeddings(list(model(torch.cat(batch)).chunk(2)), None)


STEPS: dict[str, Callable[[Any, Any, list[Tensor]], Tensor]] = {
    "pycl": pairs(lambda *z: pycl.functional.nt_xent(z, temperature=0.5, group="world")),
    "cached": cached,
    "lightly": lightly,
    "open_clip": open_clip,
    "sentence-transformers": sentences,
}


# ---- Hugging Face's Trainers

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
    from transformers import TrainerCallback

    from pycl.viz.transformers import ContrastiveCallback

    names, log = names_of(TRAINER), Path(folder) / f"{world}-{rank}.jsonl"
    a, b = (x.float() for x in views())
    made = names["Trainer"]

    class Watched(made):
        def __init__(self, model: Any, arguments: Any, **options: Any) -> None:
            probe = lambda model: [model.encoder(x) for x in (a, b)]  # noqa: E731
            watch: TrainerCallback = ContrastiveCallback(probe, log_path=log)
            super().__init__(model, arguments, callbacks=[watch], **options)

    names["Trainer"] = Watched
    torch.manual_seed(0)
    data = [{"view1": x, "view2": y} for x, y in zip(a, b, strict=True)]
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

    data = [{"x": x.float(), "labels": k % 3} for k, x in enumerate(views()[0])]
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
    loss = getattr(losses, name)(model, gather_across_devices=True, **options)
    arguments = SentenceTransformerTrainingArguments(
        folder, per_device_train_batch_size=BATCH // world, dataloader_drop_last=True, **ARGUMENTS
    )
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss)
    trainer.train()
    return history(trainer)


# ---- all of it, on one process and on two


def handed_out(n: int, drop_last: bool, **options: Any) -> list[list[int]]:
    """The samples of this rank's batches of four."""
    from accelerate.utils import DataLoaderConfiguration

    accelerator = prepared(dataloader_config=DataLoaderConfiguration(**options))
    loader = DataLoader(TensorDataset(torch.arange(n)), batch_size=4, drop_last=drop_last)
    return [batch[0].tolist() for batch in accelerator.prepare(loader)]


def without_a_group() -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            pycl.NTXentLoss(0.5)(views())
    return [str(w.message) for w in said if "was given no group" in str(w.message)]


def on_rank(rank: int, world: int, folder: str) -> dict[str, Any]:
    results: dict[str, Any] = {name: stepped(world, step) for name, step in STEPS.items()}
    results["page"] = of_the_page(world)
    results["said"] = without_a_group()
    results["even"] = {n: handed_out(n, False) for n in (6, 10)}
    results["dropped"] = {n: handed_out(n, True) for n in (6, 10)}
    results["uneven"] = {n: handed_out(n, False, even_batches=False) for n in (6, 10)}
    results["trainer"] = transformers_trainer(world, rank, folder)
    results["labels"] = {share: with_labels(world, folder, share) for share in (True, False)}
    results["ranking"] = sentence_trainer(world, "MultipleNegativesRankingLoss", folder)
    cached = {"mini_batch_size": 3}
    results["cached ranking"] = sentence_trainer(world, "CachedMultipleNegativesRankingLoss", folder, **cached)
    return results


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


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_one_process(name: str, two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    value, *expected = one[name]
    assert sum(rank[name][0] for rank in two) / 2 == pytest.approx(float(value), rel=1e-12)
    for rank in two:
        torch.testing.assert_close(rank[name][1:], expected, rtol=1e-10, atol=1e-13)


def test_the_page_s_training(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for rank in two:
        torch.testing.assert_close(rank["page"], one["page"], rtol=1e-6, atol=1e-7)  # its temperature is float32


def test_a_loss_without_a_group_says_so_once(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    assert [len(rank["said"]) for rank in two] == [1, 1]
    assert "on one of 2 ranks" in two[1]["said"][0]
    assert one["said"] == []


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


def test_what_the_loaders_hand_out(two: list[dict[str, Any]]) -> None:
    """Two ranks, batches of four: as the page has it."""
    shown = {name: {n: [rank[name][n] for rank in two] for n in (6, 10)} for name in ("even", "uneven", "dropped")}
    assert shown["even"][10] == [[[0, 1, 2, 3], [8, 9, 0, 1]], [[4, 5, 6, 7], [2, 3, 4, 5]]]
    assert shown["even"][6] == [[[0, 1, 2, 3]], [[4, 5, 0, 1]]]
    assert shown["uneven"][10] == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7]]]
    assert shown["uneven"][6] == [[[0, 1, 2, 3]], [[4, 5]]]
    assert shown["dropped"][10] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert shown["dropped"][6] == [[], []]


def uneven_loop(rank: int, world: int, n: int, join: bool) -> list[Any]:
    """A loop over batches of which one rank may have more; its losses, and the error that ended it."""
    from accelerate import InitProcessGroupKwargs
    from torch.distributed.algorithms.join import Join

    accelerator = prepared(kwargs_handlers=[InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=5))])
    model = accelerator.prepare(encoder())
    batches = [tuple(view[:n].split(4)) for view in views()]
    mine = list(zip(*batches, strict=True))[rank::world]
    found: list[Any] = []
    try:
        with Join([model], enable=join):
            for batch in mine:
                value = pycl.functional.nt_xent(model(torch.cat(batch)).chunk(2), group="world")
                value.backward()
                found.append([value.item(), len(batch[0]), *gradients(model)])
    except RuntimeError as error:
        found.append(type(error).__name__)
    return found


def test_uneven_batches_are_exact() -> None:
    ranks = launched(2, uneven_loop, 6, False)
    model = encoder()
    whole = pycl.functional.nt_xent(model(torch.cat([view[:6] for view in views()])).chunk(2))
    whole.backward()
    assert [[step[1] for step in rank] for rank in ranks] == [[4], [2]]
    assert sum(rank[0][0] for rank in ranks) / 2 == pytest.approx(whole.item(), rel=1e-12)
    for rank in ranks:
        torch.testing.assert_close(rank[0][2:], gradients(model), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("join", [False, True])
def test_a_rank_without_a_batch_ends_the_others(join: bool) -> None:
    """Nothing stands in for its part of the loss, torch's Join neither: an error after the timeout of the group."""
    ranks = launched(2, uneven_loop, 10, join)
    assert ranks[0][1] == "RuntimeError"


TWINS = {"nt_xent": (0.1263, 0.7917, 0.593), "clip": (0.0656, 0.3676, 0.991)}


@pytest.mark.parametrize("name", TWINS)
def test_what_twins_do_to_a_loss(name: str) -> None:
    """The page's numbers: 100 samples, and as 128 of which 28 are there twice."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 32, generator=generator).double()
    z = torch.stack([x, x + 0.5 * torch.randn(100, 32, generator=generator).double()]).requires_grad_()
    found = []
    for rows in (torch.arange(100), torch.arange(128) % 100):
        u = nn.functional.normalize(z[:, rows], dim=-1)
        loss = pycl.functional.nt_xent(u, temperature=0.1) if name == "nt_xent" else pycl.functional.clip(*u, 10.0)
        found.append((loss.item(), torch.autograd.grad(loss, z)[0].flatten()))
    (once, first), (twice, second) = found
    cosine = nn.functional.cosine_similarity(first, second, dim=0).item()
    assert (once, twice, cosine) == pytest.approx(TWINS[name], abs=6e-4)
