# SPDX-License-Identifier: Apache-2.0
"""The cases, each in a process of its own, some at once; one that fails is tried in every other build."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from . import builds
from .place import Place
from .processes import run
from .report import Report

WARM, COLD = 75.0, 180.0  # seconds a case may take, with its kernels in the cache and without
SHORTEST = 5.0  # seconds below which nothing is begun

# most important first; those of cases.py, which only the processes import: torch takes seconds
NAMES = (
    *("labelled-d128-bf16", "labelled-d256-bf16", "labelled-d512-bf16"),
    *("clip-d128-bf16", "clip-d256-bf16", "clip-d512-bf16"),
    *("nt_xent-d128-bf16", "nt_xent-d256-bf16", "nt_xent-d512-bf16"),
    *("siglip-d128-bf16", "siglip-d256-bf16", "itself-d128-bf16", "itself-d256-bf16"),
    *("labelled-d64-bf16", "labelled-d128-f16", "labelled-d256-f16", "labelled-d128-f32"),
    *("steep-d256-bf16", "ragged-d96-bf16", "own_scales-d128-bf16", "average-d96-bf16", "top-d128-bf16"),
    *("sinkhorn-triton-3000", "sinkhorn-cuda-3000", "sinkhorn-cuda-65536", "graph-d256-bf16", "repeat-d128-bf16"),
)
IN_CUDA = "sinkhorn-cuda-"


class Limits(NamedTuple):
    at_once: int
    seconds: float  # of an attempt
    stop: float  # of all, in time.monotonic()


def smoke(place: Place, names: Sequence[str], limits: Limits, report: Report) -> list[str]:
    """Try them; returns those that there was no time for."""
    missed: list[str] = []
    attempt = _attempt(place, limits, report)

    def case(name: str) -> None:
        right = attempt(name, "default")
        if right is None:
            missed.append(name)
        if right is False and not name.startswith(IN_CUDA):
            for build in place.other_builds():
                attempt(name, build)

    with ThreadPoolExecutor(limits.at_once) as pool:
        list(pool.map(case, names))
    return missed


def _attempt(place: Place, limits: Limits, report: Report) -> Callable[[str, str], bool | None]:
    def attempt(name: str, build: str) -> bool | None:
        left = limits.stop - time.monotonic()
        if left < SHORTEST:
            return None
        environment = place.environment | builds.environment(build, place.ptxas)
        command = place.python("pycl.bench.first.cases", name)
        done = run(command, seconds=min(limits.seconds, left), environment=environment, folder=place.root)
        found: dict[str, Any] = {"case": name, "build": build, "ok": done.ok, "seconds": round(done.seconds, 1)}
        report.add("smoke", found | {"said": done.said})
        return done.ok

    return attempt
