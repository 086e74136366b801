# SPDX-License-Identifier: Apache-2.0
"""Measures rows in two builds: ``python -m pycl.bench --base REF``.

Each build has a process of its own, and they take turns: base, now, now, base, ... One waits while the other runs. A
change of the machine hits both times of a round, so what is kept is the ratio of each round. Three pairs of processes
follow each other, and a change counts where all of them show it.

Both processes run the benchmarks of this checkout, on the library of their own build: the same inputs, the same clock.
A row of an old function is measured even if the base commit has no such row. Where these benchmarks cannot be imported
with the base's library, which then lacks something that a newer row wants, the base's own workloads are taken. In
either case the inputs of both are compared, and other inputs mean no ratio.

A row that the base cannot compute is new if the base's own benchmarks do not list it. It is a failure of the base
otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..measure import memory, turns
from ..measure.runner import Plan
from ..measure.timing import Ratio, Timing, in_turn
from ..measure.worker import Died, Hosted, Progress
from ..suites.case import Case

BASE, NOW = "base", "now"
LIMIT = 3600.0  # seconds of a call; the answer in float64 takes minutes at large sizes
ROWS = """
import json
from pycl.bench.__main__ import SUITES
print(json.dumps([case.name for cases in SUITES.values() for case in cases]))
"""

PAIRS = 3  # of processes, one after the other: where a process has its memory makes it some percent faster or slower
LEAST = 6  # rounds of a pair, however long they take

Record = dict[str, Any]
Samples = dict[str, list[float]]  # seconds of a call, by side


class Pair:
    """The processes of both builds, started when they are needed."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = folders
        self.own: dict[str, str] = {}  # why workloads are a build's own
        self._workers: dict[str, Hosted] = {}
        self._broken: dict[str, Died] = {}  # what cannot be imported; every row would find out again
        self._known: set[str] | None = None

    def call(self, side: str, *call: Any) -> Any:
        """As ``Worker.call``; the next call after one that raised has another process."""
        try:
            if side not in self._workers:
                self._workers[side] = self._start(side)
            return self._workers[side].call(*call, limit=LIMIT)
        except Died:
            self.end(side)
            raise

    def _start(self, side: str) -> Hosted:
        if side in self._broken:
            raise self._broken[side]
        try:
            worker = Hosted(self.folders[side])
        except Died as died:
            self._broken[side] = died
            raise
        if worker.own:
            self.own[side] = worker.own
        return worker

    def call_alone(self, side: str, *call: Any) -> Any:
        """As ``call``, in a process that does nothing before and nothing after."""
        self.end(side)
        try:
            return self.call(side, *call)
        finally:
            self.end(side)

    def end(self, side: str) -> None:
        """End a process, if there is one."""
        if worker := self._workers.pop(side, None):
            worker.close()

    def close(self) -> None:
        """End both."""
        for side in self.folders:
            self.end(side)

    def base_knows(self, name: str) -> bool:
        """Whether the base's own benchmarks list a row; so it is taken where they cannot say."""
        if self._known is None:
            listed = subprocess.run(
                [sys.executable, "-c", ROWS], cwd=self.folders[BASE], capture_output=True, text=True, check=False
            )
            self._known = set(json.loads(listed.stdout)) if listed.returncode == 0 else {name}
        return name in self._known


def run(record: Record, cases: Sequence[Case], plan: Plan, pair: Pair, progress: Progress) -> None:
    """Fill a record's rows with ``time_s`` and ``ratio``, or with ``peak_mib`` and ``seconds``.

    A row that this checkout fails is ``refused``. One that the base fails has the reason under ``skipped``, and a new
    one is ``new``.
    """
    rows: list[Record] = [case.as_record() | {"backend": None} for case in cases]
    samples: list[list[Samples]] = [[] for _ in cases]
    shares = shares_of(plan)
    try:
        for number, share in enumerate(shares):
            for case, row, taken in zip(cases, rows, samples, strict=True):
                progress(f"{case.label} ({number + 1} of {len(shares)})")
                if case.measure == "memory":
                    row |= {} if number else _memory(case, pair)
                elif not row["refused"]:
                    row |= _times(case, share, pair, taken)
            pair.close()
    finally:
        pair.close()
    for row, taken in zip(rows, samples, strict=True):
        row |= {} if row["refused"] else _summary(taken)
    record |= {"rows": rows, "own_workloads": pair.own}


def shares_of(plan: Plan) -> list[Plan]:
    """What of the plan each pair of processes does; a number of rounds below that of pairs leaves some out."""
    if plan.rounds is None:
        return [plan._replace(seconds=plan.seconds / PAIRS)] * PAIRS
    shares = [plan.rounds * (i + 1) // PAIRS - plan.rounds * i // PAIRS for i in range(PAIRS)]
    return [plan._replace(rounds=share) for share in shares if share]


def _times(case: Case, share: Plan, pair: Pair, taken: list[Samples]) -> Record:
    """Take a pair's samples; returns what is new of the row."""
    arguments = case, torch.get_num_threads(), not taken  # what was checked once is deterministic
    found = {side: _tried(pair.call, side, turns.ready, *arguments) for side in (BASE, NOW)}
    if "refused" in found[NOW]:
        return {"refused": found[NOW]["refused"]}
    row = _without_base(case, found[BASE], pair)
    if not row and found[BASE]["inputs"] != found[NOW]["inputs"]:
        row = {"skipped": {BASE: "it makes other inputs for this row"}}
    sides = (NOW,) if row else (BASE, NOW)
    samplers = {side: partial(pair.call, side, turns.sample) for side in sides}
    one_call = {side: found[side]["seconds"] for side in sides}
    try:
        taken.append(in_turn(samplers, one_call, seconds=share.seconds, rounds=share.rounds, least=LEAST))
    except Died as died:
        return {"refused": f"a process ended between rounds: {died}"}
    return row | {"backend": found[NOW]["backend"], "notes": found[NOW]["notes"] + _backends(found)}


def _summary(taken: Sequence[Samples]) -> Record:
    if not taken:
        return {}
    sides = [side for side in (BASE, NOW) if all(side in samples for samples in taken)]
    times = {side: Timing.of([x for samples in taken for x in samples[side]])._asdict() for side in sides}
    if BASE not in sides:
        return {"time_s": times}
    return {"time_s": times, "ratio": Ratio.of([(samples[BASE], samples[NOW]) for samples in taken])._asdict()}


def _memory(case: Case, pair: Pair) -> Record:
    job = memory.job_of(case, "ours")
    found = {side: _tried(pair.call_alone, side, turns.peak, job) for side in (BASE, NOW)}
    if "refused" in found[NOW]:
        return {"refused": found[NOW]["refused"]}
    row = _without_base(case, found[BASE], pair)
    sides = (NOW,) if row else (BASE, NOW)
    return row | {key: {side: found[side][key] for side in sides} for key in ("peak_mib", "seconds")}


def _tried(call: Callable[..., Record], *arguments: Any) -> Record:
    try:
        return call(*arguments)
    except Died as died:
        return {"refused": str(died)}


def _without_base(case: Case, base: Record, pair: Pair) -> Record:
    """What a row says where the base has no figure; nothing where it has one."""
    if "refused" not in base:
        return {}
    return {"skipped": {BASE: base["refused"]}} if pair.base_knows(case.name) else {"new": True}


def _backends(found: Mapping[str, Record]) -> list[str]:
    base, now = (found[side].get("backend") for side in (BASE, NOW))
    return [f"the base's backend is {base}, now it is {now}"] if base not in (None, now) else []
