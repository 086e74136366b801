# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' own trainer with pycl's losses on a tiny BERT, and the example that does so with MiniLM."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.example_runner import check_picture, imported, one_thread
from parity import peer
from sentence_cases import ALL, tiny_encoder

MODULES = ("sentence_transformers.sentence_transformer.losses", "pycl.compat.sentence_transformers")
NOUNS, VERBS = ("man", "woman", "dog", "cat"), ("runs", "eats", "is red", "is blue")
PAIRS = [(f"a {noun} {verb}", f"{noun} {verb} apple") for noun in NOUNS for verb in VERBS]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of one layer, on disk."""
    peer(MODULES[0])
    folder = tmp_path_factory.mktemp("tiny")
    tiny_encoder(folder).save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def losses_of(module: str, name: str, tiny: Path, folder: Path, options: dict[str, Any]) -> list[float]:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    model = SentenceTransformer(str(tiny), device="cpu")
    models = [model]
    if "GIST" in name:
        guide = SentenceTransformer(str(tiny), device="cpu")
        guide.max_seq_length = 4  # shorter than the model's: sentences are tokenised again
        models.append(guide)
    loss = getattr(importlib.import_module(module), name)(*models, **options)
    data = Dataset.from_dict({"anchor": [a for a, _ in PAIRS], "positive": [b for _, b in PAIRS]})
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model, settings, train_dataset=data, loss=loss)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


TRAINED: dict[str, dict[str, Any]] = {
    "MultipleNegativesRankingLoss": {"directions": ALL},
    "CachedMultipleNegativesRankingLoss": {"mini_batch_size": 3},
    "GISTEmbedLoss": {"temperature": 0.1, "margin": 0.05},
    "CachedGISTEmbedLoss": {"temperature": 0.1, "mini_batch_size": 3},
}


@pytest.mark.parametrize("name", TRAINED)
def test_trainer(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCL_STRICT", "1")
    with one_thread():
        theirs, mine = (losses_of(module, name, tiny, tmp_path, TRAINED[name]) for module in MODULES)
    assert mine == pytest.approx(theirs, rel=1e-4)
    assert len(set(mine)) == 4


def test_example(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for name, scores in {"train": (5.0,), "dev": (1.0, 4.5)}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows((*pair, scores[i % len(scores)]) for i, pair in enumerate(PAIRS))
    flags = ["--model", str(tiny), "--max-steps", "3", "--batch-size", "8", "--quiet"]
    with imported("sentences") as sentences, one_thread():
        summary = sentences.main(["--data-root", str(tmp_path), *flags, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit, match="--data-root"):
            sentences.main(["--data-root", str(tmp_path / "nothing")])
        with pytest.raises(SystemExit, match="--batch-size"):
            sentences.main(["--data-root", str(tmp_path), "--batch-size", "17"])
    shown = capsys.readouterr().out
    assert "Spearman on 16 pairs: before" in shown
    check_picture(tmp_path / "out" / "sentences.png")
    assert json.loads((tmp_path / "out" / "sentences.json").read_text()) == json.loads(json.dumps(summary))
    assert len(summary["runs"]["pycl"]["losses"]) == 3
    assert summary["gap"] < 1e-4
