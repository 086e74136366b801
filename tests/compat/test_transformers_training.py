# SPDX-License-Identifier: Apache-2.0
"""Patched models of transformers in the Trainer, in its evaluation, and in accelerate's hands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.example_runner import one_thread
from parity import peer
from torch import Tensor
from transformers_models import NAMED, Model, installed, patched

from pycl.compat.transformers._lazy import Lazy

CLIP, SIGLIP, BRIDGETOWER = (NAMED[n] for n in ("CLIPModel", "SiglipModel", "BridgeTowerForContrastiveLearning"))
ROWS = 12
BATCH = 4


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    installed()
    peer("accelerate")
    monkeypatch.setenv("PYCL_STRICT", "1")
    with one_thread():
        yield


def rows(model: Model) -> list[dict[str, Tensor]]:
    batch = model.batch(ROWS, torch.float32)
    return [{name: x[i] for name, x in batch.items()} for i in range(ROWS)]


def collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    return {name: torch.stack([s[name] for s in samples]) for name in samples[0]} | {"return_loss": True}


def trainer(model: Model, folder: Path, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "label_names": [],
    }
    metrics = options.pop("compute_metrics", None)
    arguments = TrainingArguments(**(settings | options))
    data = rows(model)
    made = model.make(torch.float32)
    return Trainer(
        made, arguments, data_collator=collate, train_dataset=data, eval_dataset=data, compute_metrics=metrics
    )


def losses(model: Model, folder: Path, **options: Any) -> list[float]:
    torch.manual_seed(0)
    run = trainer(model, folder, **options)
    run.train()
    return [row["loss"] for row in run.state.log_history if "loss" in row]


@pytest.mark.parametrize("model", [CLIP, SIGLIP, BRIDGETOWER], ids=lambda m: m.name)
def test_trainer(model: Model, tmp_path: Path) -> None:
    wanted = losses(model, tmp_path)
    with patched():
        found = losses(model, tmp_path)
    assert len(wanted) == 3
    assert len(set(wanted)) == 3  # it trains
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("model", [CLIP, SIGLIP], ids=lambda m: m.name)
def test_trainer_in_bfloat16(model: Model, tmp_path: Path) -> None:
    """accelerate makes float32 of a model's outputs then, all of them at every step."""
    wanted = losses(model, tmp_path, bf16=True)
    with patched():
        found = losses(model, tmp_path, bf16=True)
    np.testing.assert_allclose(found, wanted, rtol=0.05)


def evaluated(model: Model, folder: Path, **options: Any) -> tuple[dict[str, float], list[np.ndarray]]:
    seen: list[np.ndarray] = []

    def metrics(found: Any) -> dict[str, float]:
        seen.extend(np.asarray(x) for x in found.predictions)
        return {"largest": float(seen[0].max())}

    run = trainer(model, folder, compute_metrics=metrics, **options)
    ignored = ["text_model_output", "vision_model_output"]
    return run.evaluate(ignore_keys=ignored), seen


def test_evaluation_sees_the_logits(tmp_path: Path) -> None:
    wanted, theirs = evaluated(CLIP, tmp_path)
    with patched():
        found, ours = evaluated(CLIP, tmp_path)
    assert len(ours) == len(theirs) == 4  # two logits, two embeddings
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert found["eval_largest"] == pytest.approx(wanted["eval_largest"], rel=1e-6)
    assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-5)


def test_evaluation_of_the_loss_alone(tmp_path: Path) -> None:
    wanted = trainer(CLIP, tmp_path, prediction_loss_only=True).evaluate()
    with patched():
        found = trainer(CLIP, tmp_path, prediction_loss_only=True).evaluate()
    assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-5)


def test_accelerate_gathers_and_converts() -> None:
    from accelerate.utils import concatenate, convert_to_fp32, gather, pad_across_processes, recursively_apply

    batch = CLIP.batch(5)
    wanted = CLIP.make()(**batch, return_loss=True)
    with patched():
        output = CLIP.make()(**batch, return_loss=True)
    parts = {"per_text": output.logits_per_text, "both": [output.logits_per_image, output.loss]}
    pair = {"per_text": output.logits_per_text, "both": [output.logits_per_image]}
    for found in (gather(parts), pad_across_processes(parts), concatenate([pair, pair])):
        torch.testing.assert_close(found["per_text"][:5], wanted.logits_per_text)
        torch.testing.assert_close(found["both"][0][:5], wanted.logits_per_image)
    assert recursively_apply(lambda x: x.shape, output).logits_per_text == (5, 5)
    half = CLIP.make(torch.bfloat16)
    with patched():
        output = half(**CLIP.batch(5, torch.bfloat16), return_loss=True)
    converted = convert_to_fp32(output)
    assert converted.logits_per_text.dtype == converted.loss.dtype == torch.float32
    assert isinstance(converted.logits_per_text, Lazy)  # a training step must not compute it
    torch.testing.assert_close(converted.logits_per_text, output.logits_per_text.contiguous().float())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerator_trains(precision: str) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def train() -> list[float]:
        AcceleratorState._reset_state(reset_partial_state=True)  # of the test before
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        model = CLIP.make(torch.float32)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-2))
        found = []
        for seed in range(3):
            output = model(**CLIP.batch(6, torch.float32, seed), return_loss=True)
            accelerator.backward(output.loss)
            optimizer.step()
            optimizer.zero_grad()
            found.append(output.loss.item())
        assert isinstance(output.logits_per_text, Lazy) == bool(patches)
        return found

    patches: list[bool] = []
    wanted = train()
    with patched():
        patches.append(True)
        found = train()
    np.testing.assert_allclose(found, wanted, rtol=1e-4 if precision == "no" else 0.05)
