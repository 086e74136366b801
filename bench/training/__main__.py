# SPDX-License-Identifier: Apache-2.0
"""Whole training steps with our loss, the library's and the dense formula: ``python -m pycl.bench.training``.

Each step runs in a process of its own, so that its peak memory is seen; the three forms take turns. Encoders have
random weights, and data are random: neither changes what a step costs. From ``--chunk-from`` pairs on the encoders run
in chunks by ``pycl.cached_step``, with each of the losses, or their activations would not fit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..measure.timing import Timing
from ..present import record as records
from ..present.program import finish, integers
from .recipes import RECIPES
from .step import measured

SIDES = ("ours", "peer", "eager")
SIZES, ROUNDS, CHUNK, CHUNK_FROM = (512, 2048, 8192), (5, 3, 1), 512, 4096
APART = 1e-3  # of the losses of the three forms, float32


def row_of(name: str, size: int, rounds: int, chunk: int | None) -> dict[str, Any]:
    """Times, peaks and losses of the three forms in turn; AssertionError where the losses differ."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        for side in SIDES[:: 1 if turn % 2 else -1]:
            found[side].append(measured(name, size, chunk, side))
    values = {side: steps[0]["value"] for side, steps in found.items()}
    for side, value in values.items():
        if not abs(value - values["eager"]) <= APART * abs(values["eager"]):
            raise AssertionError(f"{name}, N = {size}: the loss of {side} is {value}, dense {values['eager']}")
    return {
        "name": name,
        "size": size,
        "chunk": chunk,
        "time_s": {side: Timing.of([step["seconds"] for step in steps])._asdict() for side, steps in found.items()},
        "loss_s": {side: Timing.of([step["loss_seconds"] for step in steps]).median for side, steps in found.items()},
        "peak_mib": {side: Timing.of([step["peak_mib"] for step in steps]).median for side, steps in found.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every recipe whose libraries are installed."""
    parser = argparse.ArgumentParser(prog="python -m pycl.bench.training", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--sizes", type=integers, default=SIZES, metavar="N,...", help="pairs in a batch")
    parser.add_argument("--rounds", type=integers, default=ROUNDS, metavar="R,...", help="steps of each form, by size")
    parser.add_argument("--only", default="", metavar="TEXT", help="recipes with this in their name")
    parser.add_argument("--chunk", type=int, default=CHUNK, metavar="ROWS", help=f"default {CHUNK}")
    parser.add_argument("--chunk-from", type=int, default=CHUNK_FROM, metavar="N", help=f"default {CHUNK_FROM}")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write the record there as cpu-training.json")
    arguments = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(arguments)
    if len(options.rounds) != len(options.sizes):
        parser.error(f"--rounds must be one number for each of the {len(options.sizes)} sizes, got {options.rounds}")
    command = " ".join(["python -m pycl.bench.training", *records.repeatable(arguments)])
    record = records.new_record("training", command) | {"peers": {}}
    for name, recipe in ((name, recipe) for name, recipe in RECIPES.items() if options.only in name):
        distribution = recipe.library.distribution
        version = importlib.metadata.version(distribution)
        record["peers"][distribution] = {"version": version, "why_not": None}
        for size, rounds in zip(options.sizes, options.rounds, strict=True):
            print(f"{name}, N = {size}", file=sys.stderr)
            chunk = options.chunk if size >= options.chunk_from else None
            record["rows"].append(row_of(name, size, rounds, chunk))
    finish(record, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
