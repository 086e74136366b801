# SPDX-License-Identifier: Apache-2.0
"""The flags that every example has, and their checks."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST = {"batch_size": 2, "epochs": 1, "max_steps": 1, "checkpoint_every": 0, "evaluate_every": 1, "threads": 1}


def make_parser(
    description: str | None, *, out: str, batch_size: int, epochs: int, lr: float, temperature: float
) -> argparse.ArgumentParser:
    """A parser with the common flags; an example gives its own defaults and adds its own flags."""
    parser = argparse.ArgumentParser(
        description=(description or "").split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    run, training, machine = (parser.add_argument_group(name) for name in ("run", "training", "machine"))
    run.add_argument("--data-root", type=Path, help="where the data is")
    run.add_argument("--out", type=Path, default=Path(out), help="folder of the log, the checkpoint, tables, pictures")
    run.add_argument("--resume", help="auto: go on where --out stopped; never: start over; or a checkpoint's path")
    run.add_argument("--checkpoint-every", type=int, default=200, help="steps; 0 for none")
    run.add_argument("--evaluate-every", type=int, default=5, help="epochs between two measurements")
    run.add_argument("--tensorboard", action="store_true", help="write OUT/tensorboard, too")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    training.add_argument("--batch-size", type=int, default=batch_size, help="of all ranks together")
    training.add_argument("--epochs", type=int, default=epochs, help="passes over the data")
    training.add_argument("--max-steps", type=int, help="end after so many steps, if that is earlier")
    training.add_argument("--lr", type=float, default=lr, help="highest learning rate: warm-up, then half a cosine")
    training.add_argument("--weight-decay", type=float, default=1e-3, help="of matrices; vectors have none")
    training.add_argument("--clip-norm", type=float, default=5.0, help="longest gradient")
    training.add_argument("--temperature", type=float, default=temperature, help="of the loss")
    training.add_argument("--seed", type=int, default=0, help="of everything random")
    machine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: a GPU if there is one")
    machine.add_argument("--amp", choices=AMP, default="off", help="dtype of the encoder's activations")
    machine.add_argument("--compile", action="store_true", help="torch.compile the encoder")
    machine.add_argument("--threads", type=int, help="of torch on a CPU")
    return parser


def parse(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    *,
    least: dict[str, int] | None = None,
    positive: Sequence[str] = (),
) -> argparse.Namespace:
    """The command line, checked: integers against the ``least`` allowed, real numbers for being positive."""
    args = parser.parse_args(argv)
    for name, low in (LEAST | (least or {})).items():
        if (value := getattr(args, name)) is not None and value < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    for name in ("lr", "temperature", "clip_norm", *positive):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    if not 0 <= args.weight_decay < math.inf:
        parser.error(f"--weight-decay must not be negative, got {args.weight_decay}")
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


class Refused(Exception):
    """What the user can mend: the message says how."""


@contextmanager
def one_line() -> Iterator[None]:
    """Ends the program with one line where it was refused something."""
    try:
        yield
    except Refused as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
