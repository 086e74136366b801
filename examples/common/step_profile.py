# SPDX-License-Identifier: Apache-2.0
"""What the loss takes of a training step, and what its dense form in plain torch would take."""

from __future__ import annotations

from typing import Any

import torch

from common.stopwatch import COLD, Stopwatch
from common.tables import count, grid
from common.trainer import Trainer

ROUNDS = 5  # fewer where the training was shorter


def profile(trainer: Trainer, *, dense: bool = True) -> dict[str, Any]:
    """Median milliseconds of the parts of a step.

    ``loss`` and ``dense_loss`` are of steps that alternate between pycl and plain torch, without an update. On several
    ranks ``dense_loss`` is None: the dense form knows its own rank alone. So it is without ``dense``, for batches whose
    dense form has no room.
    """
    seconds, dense_loss = trainer.watch.medians(), None
    if dense and trainer.ranks.size == 1:
        ours, theirs = _alternate(trainer)
        seconds = (seconds or ours) | {"loss": ours["loss"]}  # of a finished run that was resumed there are no steps
        dense_loss = 1e3 * theirs["loss"]
    parts = {part: 1e3 * value for part, value in seconds.items()}
    found = {"batch_size": trainer.batch_size, "threads": torch.get_num_threads()}
    return found | {"ms": parts, "dense_loss": dense_loss}


def _alternate(trainer: Trainer) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of steps with the loss, and of steps with its dense form."""
    task = trainer.task.train()
    watches = Stopwatch(trainer.ranks.device), Stopwatch(trainer.ranks.device)
    with trainer.ranks.own_random():
        for _ in range(min(ROUNDS, trainer.steps) + COLD):
            for dense, watch in enumerate(watches):
                watch.start()
                batch = task.batch(trainer.rows(0))
                watch.lap("data")
                with trainer.autocast():
                    value = task(batch, watch, dense=bool(dense))
                task.zero_grad()
                value.backward()
                watch.lap("encoder")
                watch.stop()
    return watches[0].medians(), watches[1].medians()


def table(found: dict[str, Any]) -> str:
    """The profile as text."""
    parts, dense = found["ms"], found["dense_loss"]
    if not parts:
        return "no step was trained, so there is no profile"
    whole = sum(parts.values())
    rows = [["one step", "ms", "share"]]
    rows += [[part, f"{ms:.1f}", f"{100 * ms / whole:.1f} %"] for part, ms in parts.items()]
    if dense is not None:
        rows.append(
            ["the loss in plain torch", f"{dense:.1f}", f"{100 * dense / (whole - parts['loss'] + dense):.1f} %"]
        )
    head = f"batch of {found['batch_size']}, {count(found['threads'], 'thread')}, medians"
    return "\n".join([head, *grid(rows)])
