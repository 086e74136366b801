# SPDX-License-Identifier: Apache-2.0
"""Measures cases in the order they come, until the time is up.

A GPU's cases are measured in processes, one for each group of neighbours. A process that ends is followed by another
one, and what took it down is left out: a competitor of its case, or the case.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..suites.case import Case
from ..workloads import baselines
from . import runner
from .cpu import Cpu
from .device import Device
from .gpu import Gpu
from .runner import ALL, DISTINCT, Circumstances, Plan
from .worker import Died, Progress, Worker, unheard

DEVICES: dict[str, Device] = {"cpu": Cpu(), "cuda": Gpu()}

PLANNED_RATE = 500e12  # operations a second that a run is planned with
PLANNED_CALLS = 40  # of ours that a case is worth, competitors included
SETUP_SECONDS = 6.0  # compiling: 52 kernels of ours in all cases, 60 s of one core under Triton 3.6
COMPILING_SECONDS = 25.0  # torch.compile
START_SECONDS = 8.0  # of a process
STUCK_SECONDS = 120.0  # beyond three times what is planned; compiling for the first time is not what is meant
SLACK_SECONDS = 30.0  # beyond the budget, for a case that began within it

Record = dict[str, Any]


def run(
    record: Record,
    cases: Sequence[Case],
    plan: Plan,
    device: Device,
    *,
    budget: float | None = None,
    progress: Progress = unheard,
) -> None:
    """Fill a record; a case that does not fit into what is left of ``budget`` seconds is listed as not reached.

    Args:
        record: gets ``rows``, ``peers``, ``not_reached`` and the facts of the device.
        cases: what to measure; those that only compare with others than the plan's baselines are left out.
        plan: how, and whom to compare with.
        device: where.
        budget: seconds of the whole run, if they are limited. On a GPU it is known what a case needs; on a CPU the last
            one that begins may take longer.
        progress: told what comes next.

    Raises:
        Died: the device cannot even be described.
    """
    stop = time.monotonic() + (budget or float("inf"))
    workers = _Workers(device)
    try:
        progress("facts")
        found = workers.of(None).call(facts, device, limit=STUCK_SECONDS)
        record |= found | {"peers": {}, "not_reached": []}
        for case in compared_with(plan.baselines, cases):
            need = predicted_seconds(case, record["roofline"]) if budget and "roofline" in record else 0.0
            left = stop - time.monotonic()
            if need > left:
                wanted = f"needs about {need:.0f} s, " if need else ""
                reason = f"{wanted}{max(left, 0):.0f} s of {budget:.0f} s were left"
                record["not_reached"].append({**case.as_record(), "reason": reason})
                continue
            progress(case.label)
            measured, versions = _measured(workers, case, plan, need, stop)
            record["rows"].append(measured)
            record["peers"] |= versions
    finally:
        workers.close()


def compared_with(names: Sequence[str], cases: Sequence[Case]) -> list[Case]:
    """The cases that need none of the other baselines."""
    return [case for case in cases if not case.baselines or set(case.baselines) & set(names)]


def group_of(case: Case) -> str:
    """Cases of a group share a process while they follow each other; ``torch.compile`` shares none."""
    return "compile" if case.baselines == ("compile",) else case.loss


def predicted_seconds(case: Case, rates: Mapping[str, float]) -> float:
    alone = case.measure == "one step"
    checked = case.at(DISTINCT) if alone else case
    check = 4 * checked.floor_flop / rates["float64"]
    setup = COMPILING_SECONDS if group_of(case) == "compile" else SETUP_SECONDS
    return setup + (3 if alone else PLANNED_CALLS) * case.floor_flop / PLANNED_RATE + check


def facts(device: Device, at: Progress) -> dict[str, Any]:
    at("facts")
    return device.facts()


def measure(
    case: Case, plan: Plan, device: Device, left: float, skipped: Mapping[str, str], at: Progress
) -> tuple[Record, Record]:
    """The case's record, and what was found of its peers."""
    names = tuple(name for name in plan.baselines if name not in skipped)
    at("peers")
    wanted = (peer for peer in baselines.PEERS if "peers" in names and peer.loss == case.loss)
    peers = baselines.find(wanted)
    given = Circumstances(time.monotonic() + left, skipped, at)
    return runner.measure(case, plan._replace(baselines=names), device, peers, given), baselines.versions(peers)


class _Workers:
    """One at a time: another one for another group, and after one has died."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._worker: Worker | None = None
        self._group: str | None = None

    def of(self, group: str | None) -> Worker:
        if self._worker is None or self._group not in (group, None):
            self.close()
            self._worker = self.device.worker()
        self._group = group
        return self._worker

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None


def _measured(workers: _Workers, case: Case, plan: Plan, need: float, stop: float) -> tuple[Record, Record]:
    """As ``measure``; a competitor that takes the process down is left out in the next one."""
    skipped: dict[str, str] = {}
    while True:
        left = stop - time.monotonic()
        limit = min(STUCK_SECONDS + 3 * need, max(left, 0.0) + SLACK_SECONDS)
        try:
            worker = workers.of(group_of(case))
            found: tuple[Record, Record] = worker.call(measure, case, plan, workers.device, left, skipped, limit=limit)
            return found
        except Died as died:
            workers.close()
            reason, at = f"its process ended: {died}", died.at
            if at is None or at in ("ours", ALL, *skipped) or stop < time.monotonic():
                refused = reason if at in (None, "ours") else f"{reason} (at {at})"
                return case.as_record() | {"backend": None, "skipped": skipped, "refused": refused}, {}
            skipped[at] = reason
