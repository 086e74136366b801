# SPDX-License-Identifier: Apache-2.0
"""Time and memory against the size of the batch: ours, and everyone else as long as a step of theirs fits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..suites.case import Case
from . import memory
from .device import Device
from .runner import Plan
from .suite import measure
from .worker import unheard

SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
QUICK_SIZES = (256, 512, 1024, 2048)
TOO_SLOW = 15.0  # seconds of a step

Record = dict[str, Any]


def sweep(case: Case, sizes: Sequence[int], plan: Plan, device: Device) -> tuple[list[Record], Record]:
    """The case with everyone's time and memory at every size, and what was found of its peers.

    A competitor is left out from where a step of its would last too long or not fit, if it grows like the matrix.
    """
    found: list[Record] = []
    versions: Record = {}
    skipped: dict[str, str] = {}
    for size in sorted(sizes):
        here = replace(case.at(size), measure="time")
        if found:
            growth = here.matrix_bytes / case.at(found[-1]["size"]).matrix_bytes
            skipped |= _beyond(found[-1], growth, device.free_bytes())
        record, versions = measure(here, plan, device, math.inf, skipped, unheard)
        found.append(record | {"peak_mib": _peaks(here, record)})
    return found, versions


def _peaks(case: Case, record: Record) -> dict[str, float]:
    """Of everyone who has a time; a competitor whose process fails has none."""
    found = {}
    for name in record.get("time_s", ()):
        with contextlib.suppress(*(() if name == "ours" else (memory.Failed,))):
            if name != "G":
                found[name] = memory.peak(case, name)["peak_mib"]
    return found


def _beyond(before: Record, growth: float, free_bytes: int) -> Mapping[str, str]:
    """Who would be too slow or too large at a matrix so many times as large, and why."""
    reasons = {}
    for name, timing in before.get("time_s", {}).items():
        if name in ("ours", "G"):
            continue
        seconds, mib = growth * timing["median"], growth * before["peak_mib"].get(name, 0.0)
        if seconds > TOO_SLOW:
            reasons[name] = f"a step would take about {seconds:.0f} s"
        elif mib * 2**20 > 0.8 * free_bytes:
            reasons[name] = f"a step would take about {mib / 2**10:.0f} GiB; {free_bytes / 2**30:.0f} GiB are free"
    return reasons
