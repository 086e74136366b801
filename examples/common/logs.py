# SPDX-License-Identifier: Apache-2.0
"""What a run writes while it trains: a row of JSON a step, TensorBoard's files, and a bar on the terminal."""

from __future__ import annotations

import argparse
from typing import Any

from tqdm import tqdm

from common.flags import Refused
from pycl.viz import RunLog

LOG = "log.jsonl"


class Logs:
    """The log of a run. Ranks other than the first one keep none."""

    def __init__(self, args: argparse.Namespace, *, first: bool, start: int, steps: int) -> None:
        self._rows = self._board = None
        if first:
            if start == 0:
                (args.out / LOG).unlink(missing_ok=True)
            self._rows = RunLog(args.out / LOG)
            try:
                self._rows.truncate_after(start)  # what a killed run did after its last checkpoint
            except ValueError as error:
                raise Refused(f"--resume: {args.out / LOG} is damaged: {error}") from error
            self._board = _board(args, start) if args.tensorboard else None
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=args.quiet or not first, desc=f"seed {args.seed}"
        )

    def step(self, row: dict[str, Any]) -> None:
        """A training step is over."""
        self.write(row)
        self._bar.set_postfix_str(
            f"loss {row['loss']:.3f}, {row['images_per_second']:.0f}/s, {100 * row['loss_share']:.1f} % for the loss",
            refresh=False,
        )
        self._bar.update()

    def write(self, row: dict[str, Any]) -> None:
        """A row with a step number and other numbers."""
        if self._rows is not None:
            try:
                self._rows.append(row)
            except OSError as error:
                raise Refused(f"{self._rows.path} could not be written: {error.strerror}") from error
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()


def _board(args: argparse.Namespace, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise Refused("--tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(args.out / "tensorboard"), purge_step=start + 1 if start else None)
