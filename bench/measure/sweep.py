# SPDX-License-Identifier: Apache-2.0
"""Time and memory against the size of the batch, ours and dense eager, each measured as long as eager fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..suites.case import Case
from . import memory, runner
from .device import Device
from .runner import Plan

SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
QUICK_SIZES = (256, 512, 1024, 2048)
TOO_SLOW = 15.0  # seconds of a dense step


def sweep(case: Case, sizes: Sequence[int], plan: Plan, device: Device) -> list[dict[str, Any]]:
    """The case with its memory at every size; eager is left out from where a step would last too long or not fit."""
    found: list[dict[str, Any]] = []
    baselines: tuple[str, ...] = ("eager",)
    for size in sorted(sizes):
        here = replace(case.at(size), measure="time")
        if found and "eager" in found[-1].get("time_s", {}):
            growth = here.matrix_bytes / case.at(found[-1]["size"]).matrix_bytes
            slow = growth * found[-1]["time_s"]["eager"]["median"] > TOO_SLOW
            large = growth * found[-1]["peak_mib"]["eager"] * 2**20 > 0.8 * device.free_bytes()
            baselines = () if slow or large else baselines
        record = runner.measure(here, plan._replace(baselines=baselines), device)
        peaks = {provider: memory.peak(here, provider)["peak_mib"] for provider in ("ours", *baselines)}
        found.append(record | {"peak_mib": peaks})
    return found
