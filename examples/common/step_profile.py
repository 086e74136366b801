# SPDX-License-Identifier: Apache-2.0
"""What the loss takes of a training step, and what its dense form in plain torch would take."""

from __future__ import annotations

from typing import Any

import torch

from common.stopwatch import COLD, Stopwatch
from common.tables import count, grid
from common.trainer import Trainer

ROUNDS = 5


def profile(trainer: Trainer, *, dense: bool = True) -> dict[str, Any]:
    """Median milliseconds of the parts of a step.

    ``loss`` and ``dense_loss`` are of steps that alternate between pycl and plain torch, without an update. On several
    ranks ``dense_loss`` is None: the dense form knows its own rank alone. So it is without ``dense``, for batches whose
    dense form has no room.
    """
    parts = {part: 1e3 * seconds for part, seconds in trainer.watch.medians().items()}
    theirs = None
    if dense and trainer.ranks.size == 1:
        parts["loss"], theirs = _alternate(trainer)
    return {"batch_size": trainer.batch_size, "threads": torch.get_num_threads(), "ms": parts, "dense_loss": theirs}


def _alternate(trainer: Trainer) -> tuple[float, float]:
    task = trainer.task.train()
    watches = Stopwatch(trainer.ranks.device), Stopwatch(trainer.ranks.device)
    with torch.random.fork_rng():
        for _ in range(ROUNDS + COLD):
            for dense, watch in enumerate(watches):
                watch.start()
                batch = task.batch(trainer.rows(0))
                watch.lap("data")
                with trainer.autocast():
                    value = task(batch, watch, dense=bool(dense))
                task.zero_grad()
                value.backward()
                watch.stop()
    ours, theirs = (1e3 * watch.medians()["loss"] for watch in watches)
    return ours, theirs


def table(found: dict[str, Any]) -> str:
    """The profile as text."""
    parts, dense = found["ms"], found["dense_loss"]
    whole = sum(parts.values())
    rows = [["one step", "ms", "share"]]
    rows += [[part, f"{ms:.1f}", f"{100 * ms / whole:.1f} %"] for part, ms in parts.items()]
    if dense is not None:
        rows.append(
            ["the loss in plain torch", f"{dense:.1f}", f"{100 * dense / (whole - parts['loss'] + dense):.1f} %"]
        )
    head = f"batch of {found['batch_size']}, {count(found['threads'], 'thread')}, medians"
    return "\n".join([head, *grid(rows)])
