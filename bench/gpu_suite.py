# SPDX-License-Identifier: Apache-2.0
"""The suite "gpu": its rows in the order they come, until the time is up, every group of them in a process of its own.

A process that ends is followed by another one. What takes it down is left out: a baseline of its row, or the row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from . import gpu, gpu_runner, peers, runner
from .gpu_runner import ALL, DISTINCT, Progress, unheard
from .gpu_worker import Died, Worker
from .rows import Row

PLANNED_RATE = 500e12  # operations a second that a run is planned with
PLANNED_CALLS = 40  # of ours that a row is worth, baselines included
SETUP_SECONDS = 6.0  # compiling: 52 kernels of ours in all rows, 60 s of one core under Triton 3.6
COMPILING_SECONDS = 25.0  # torch.compile
START_SECONDS = 8.0  # of a process
STUCK_SECONDS = 120.0  # beyond three times what is planned; compiling for the first time is not what is meant
SLACK_SECONDS = 30.0  # beyond the budget, for a row that began within it


class Plan(NamedTuple):
    """How rows are measured."""

    baselines: tuple[str, ...]
    seconds: float
    rounds: int | None


def run(
    record: dict[str, Any],
    rows: Sequence[Row],
    baselines: Sequence[str],
    *,
    budget: float,
    seconds: float,
    rounds: int | None = None,
    progress: Progress = unheard,
) -> None:
    """Fill a record; a row that does not fit into what is left of ``budget`` seconds is listed as not reached.

    Args:
        record: gets ``rows``, ``gpu``, ``roofs``, ``peers`` and ``not_reached``.
        rows: what to measure; those that only compare with others than ``baselines`` are left out.
        baselines: whom to compare with.
        budget: seconds of the whole run.
        seconds: spent on the timing of a row, at least three rounds.
        rounds: exactly that many rounds a row instead.
        progress: told what comes next.

    Raises:
        Died: the GPU cannot even be described.
    """
    stop = time.monotonic() + budget
    plan = Plan(tuple(baselines), seconds, rounds)
    progress("roofs")
    processes = _Processes()
    try:
        record |= processes.of(None).call(facts, limit=STUCK_SECONDS) | {"peers": {}, "not_reached": []}
        for row in compared_with(baselines, rows):
            need, left = predicted_seconds(row, record["roofs"]), stop - time.monotonic()
            if need > left:
                reason = f"needs about {need:.0f} s, {max(left, 0):.0f} s of {budget:.0f} s were left"
                record["not_reached"].append({**runner.describe(row), "reason": reason})
                continue
            progress(row.label)
            measured, versions = _measured(processes, row, plan, need, stop)
            record["rows"].append(measured)
            record["peers"] |= versions
    finally:
        processes.close()


def compared_with(baselines: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """The rows that need none of the other baselines."""
    return [row for row in rows if not row.baselines or set(row.baselines) & set(baselines)]


def group_of(row: Row) -> str:
    """Rows of a group share a process while they follow each other; ``torch.compile`` shares none."""
    return "compile" if row.baselines == ("compile",) else row.loss


def predicted_seconds(row: Row, roofs: Mapping[str, float]) -> float:
    alone = row.measure == "one step"
    checked = row.at(DISTINCT) if alone else row
    check = 4 * checked.floor_flop / roofs["float64"]
    setup = COMPILING_SECONDS if group_of(row) == "compile" else SETUP_SECONDS
    return setup + (3 if alone else PLANNED_CALLS) * row.floor_flop / PLANNED_RATE + check


def facts(at: Progress) -> dict[str, Any]:
    """What the GPU is and how fast it can be."""
    at("roofs")
    return {"gpu": gpu.describe(), "roofs": gpu.roofs()}


def measure(
    row: Row, plan: Plan, left: float, skipped: Mapping[str, str], at: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row's record, and what was found of its peers."""
    stop = time.monotonic() + left
    baselines = [name for name in plan.baselines if name not in skipped]
    at("peers")
    found = _found(row.loss) if "peers" in baselines else []
    record = gpu_runner.measure(
        row, baselines, found, seconds=plan.seconds, rounds=plan.rounds, stop=stop, skipped=skipped, at=at
    )
    return record, peers.versions(found)


@cache
def _found(loss: str) -> list[peers.Found]:
    return peers.find(peer for peer in peers.PEERS if peer.loss == loss)


class _Processes:
    """One at a time: another one for another group, and after one has died."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._group: str | None = None

    def of(self, group: str | None) -> Worker:
        if self._worker is None or self._group not in (group, None):
            self.close()
            self._worker = Worker()
        self._group = group
        return self._worker

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None


def _measured(
    processes: _Processes, row: Row, plan: Plan, need: float, stop: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """As ``measure``; a baseline that takes the process down is left out in the next one."""
    skipped: dict[str, str] = {}
    while True:
        left = stop - time.monotonic()
        limit = min(STUCK_SECONDS + 3 * need, max(left, 0.0) + SLACK_SECONDS)
        try:
            found: tuple[dict[str, Any], dict[str, Any]] = processes.of(group_of(row)).call(
                measure, row, plan, left, skipped, limit=limit
            )
            return found
        except Died as died:
            processes.close()
            reason = f"its process ended: {died}"
            if died.at in (None, "ours", ALL, *skipped) or stop < time.monotonic():
                return runner.describe(row) | {"backend": None, "skipped": skipped, "refused": _blame(reason, died)}, {}
            skipped[died.at] = reason


def _blame(reason: str, died: Died) -> str:
    return reason if died.at in (None, "ours") else f"{reason} (at {died.at})"
