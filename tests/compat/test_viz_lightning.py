# SPDX-License-Identifier: Apache-2.0
"""pycl's callback in Lightning's own trainer, of both packages that there are."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.example_runner import check_picture, one_thread
from parity import peer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pycl
from pycl.viz import RunLog, measure, read

PACKAGES = ("pytorch_lightning", "lightning.pytorch")


@pytest.fixture(params=PACKAGES)
def pl(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    library = peer(request.param)
    peer(f"{request.param}.loggers")
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield library


def module(pl: ModuleType, learnable: bool = True, returned: str = "embeddings") -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.Linear(8, 4)
            self.loss = pycl.NTXentLoss(0.5, learnable_temperature=learnable)
            self.seen: list[tuple[float, list[Tensor]]] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Any]:
            views = [self.encoder(batch[0]), self.encoder(batch[0] + 0.1)]
            loss = self.loss(views)
            self.seen.append((float(loss), [z.detach().clone() for z in views]))
            return {"loss": loss, returned: [z.detach() for z in views]}

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.loss([self.encoder(batch[0])] * 2)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Module()


def loader() -> DataLoader:
    images = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(images), batch_size=5)  # 8 batches


def fit(pl: ModuleType, model: Any, folder: Path, callback: Any, *, ckpt: Path | None = None, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "logger": False,
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(**(settings | options), callbacks=[callback])
    trainer.fit(model, loader(), loader(), ckpt_path=ckpt)
    return trainer


def callback(**options: Any) -> Any:
    from pycl.viz.lightning import ContrastiveCallback

    return ContrastiveCallback(**options)


def test_rows_are_the_measures_of_the_steps(pl: ModuleType, tmp_path: Path) -> None:
    import importlib

    log, picture, model = tmp_path / "run.jsonl", tmp_path / "run.png", module(pl)
    logger = importlib.import_module(f"{pl.__name__}.loggers").CSVLogger(tmp_path)
    watching = callback(every_n_steps=4, log_path=log, dashboard=picture)
    fit(pl, model, tmp_path, watching, logger=logger, log_every_n_steps=4)
    rows = read(log)
    assert [row["step"] for row in rows] == [4, 8, 12, 16]
    assert [row["epoch"] for row in rows] == [0, 0, 1, 1]
    temperatures = [row["temperature"] for row in rows]
    assert len(set(temperatures)) == 4
    assert temperatures[-1] == pytest.approx(model.loss.temperature.item())
    for row in rows:
        loss, views = model.seen[row["step"] - 1]
        assert row["loss"] == pytest.approx(loss)
        assert row["learning_rate"] == pytest.approx(0.1 * 0.5 ** (row["step"] - 1))
        assert row["images_per_second"] > 0
        expected = measure(views)
        assert {name: row[name] for name in expected} == expected
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    for row, numbers in zip(rows, logged, strict=True):
        for name in ("alignment", "uniformity", "effective_rank", "temperature"):
            assert float(numbers[f"contrastive/{name}"]) == pytest.approx(row[name], rel=1e-5)
    check_picture(picture)


def test_the_training_is_the_one_without_the_callback(pl: ModuleType, tmp_path: Path) -> None:
    with_it, without = module(pl), module(pl)
    fit(pl, with_it, tmp_path, callback(every_n_steps=1, log_path=tmp_path / "run.jsonl"))
    fit(pl, without, tmp_path, pl.Callback())
    for mine, theirs in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_accumulated_gradients(pl: ModuleType, tmp_path: Path) -> None:
    """Two batches a step: one row a step, with the loss of its last batch as the training step returned it."""
    model = module(pl)
    fit(pl, model, tmp_path, callback(every_n_steps=1, log_path=tmp_path / "r"), accumulate_grad_batches=2)
    rows = read(tmp_path / "r")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["loss"] for row in rows] == pytest.approx([loss for loss, _ in model.seen[1::2]])


def test_every_n_steps_is_the_trainer_s_unless_it_is_given(pl: ModuleType, tmp_path: Path) -> None:
    fit(pl, module(pl), tmp_path, callback(log_path=tmp_path / "run.jsonl"), log_every_n_steps=6)
    assert [row["step"] for row in read(tmp_path / "run.jsonl")] == [6, 12]


def test_a_function_gives_the_arguments_of_measure(pl: ModuleType, tmp_path: Path) -> None:
    codes = torch.eye(3)[torch.arange(5) % 3]
    loss = nn.Module()
    loss.temperature = 0.25

    def found(model: Any, outputs: dict[str, Any]) -> dict[str, Any]:
        return {"embeddings": outputs["z"], "codes": codes, "bins": 8}

    watching = callback(loss=loss, embeddings=found, every_n_steps=8, log_path=tmp_path / "run.jsonl")
    fit(pl, module(pl, returned="z"), tmp_path, watching)
    for row in read(tmp_path / "run.jsonl"):
        assert row["perplexity"] == pytest.approx(torch.special.entr(torch.tensor([0.4, 0.4, 0.2])).sum().exp().item())
        assert row["temperature"] == 0.25
        assert len(row["positives"]) == 8


def test_a_resumed_fit_goes_on_with_its_log(pl: ModuleType, tmp_path: Path) -> None:
    log, checkpoint = tmp_path / "run.jsonl", tmp_path / "half.ckpt"
    trainer = fit(pl, module(pl), tmp_path, callback(every_n_steps=2, log_path=log), max_epochs=1)
    trainer.save_checkpoint(checkpoint)
    RunLog(log).append({"step": 10, "loss": -1.0})  # of steps after the checkpoint, which are taken again
    fit(pl, module(pl), tmp_path, callback(every_n_steps=2, log_path=log), ckpt=checkpoint)
    rows = read(log)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert all(row["loss"] > 0 for row in rows)
    with pytest.raises(FileExistsError, match=r"log_path: .* has the rows of another run"):
        fit(pl, module(pl), tmp_path, callback(log_path=log))


def test_what_is_missing_is_said(pl: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training_step must return a dict with its views under 'views', got loss, z"):
        fit(pl, module(pl, returned="z"), tmp_path, callback(embeddings="views", every_n_steps=1))
    with pytest.raises(ValueError, match=r"embeddings must be views, .* got a dict of codes"):
        fit(pl, module(pl), tmp_path, callback(embeddings=lambda *_: {"codes": 1}, every_n_steps=1))


def test_a_step_that_the_module_skips_is_not_measured(pl: ModuleType, tmp_path: Path) -> None:
    model = module(pl)
    measured = model.training_step
    model.training_step = lambda batch, batch_idx: measured(batch, batch_idx) if batch_idx != 3 else None
    fit(pl, model, tmp_path, callback(every_n_steps=4, log_path=tmp_path / "run.jsonl"), max_epochs=1)
    assert [row["step"] for row in read(tmp_path / "run.jsonl")] == [5, 8]


def test_a_fit_without_a_row_draws_nothing_and_says_so(pl: ModuleType, tmp_path: Path) -> None:
    watching = callback(every_n_steps=50, log_path=tmp_path / "run.jsonl", dashboard=tmp_path / "run.png")
    with pytest.warns(UserWarning, match="no dashboard: the run ended before its first row"):
        fit(pl, module(pl), tmp_path, watching)
    assert not (tmp_path / "run.png").exists()


def test_steps_that_reach_no_logger(pl: ModuleType, tmp_path: Path) -> None:
    import importlib

    logger = importlib.import_module(f"{pl.__name__}.loggers").CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="every_n_steps=3 is no multiple of the trainer's log_every_n_steps=4"):
        fit(pl, module(pl), tmp_path, callback(every_n_steps=3), logger=logger, log_every_n_steps=4)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "every": ({"every_n_steps": 0}, ValueError, "every_n_steps must be at least 1"),
    "picture": ({"dashboard": "run.png"}, ValueError, "dashboard needs log_path"),
    "loss": ({"loss": nn.Linear(1, 1)}, TypeError, "loss must have a temperature, got Linear without one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    peer("pytorch_lightning")
    options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        callback(**options)
