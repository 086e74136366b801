# SPDX-License-Identifier: Apache-2.0
"""Times of several functions that do the same work, taken in turn so that a change of the machine hits all of them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import quantiles
from typing import NamedTuple

MIN_ROUNDS = 3
MAX_ROUNDS = 100
SAMPLE_SECONDS = 0.02  # a shorter step is repeated until a sample takes that long

Step = Callable[[], object]


class Timing(NamedTuple):
    """Quartiles of the seconds one step takes, over ``rounds`` samples."""

    median: float
    q1: float
    q3: float
    rounds: int

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        q1, median, q3 = quantiles(samples, n=4, method="inclusive")
        return cls(median, q1, q3, len(samples))


def once(step: Step) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleaved(
    steps: Mapping[str, Step], *, seconds: float, rounds: int | None = None, clock: Callable[[Step], float] = once
) -> dict[str, Timing]:
    """Time steps that were called before, one sample of each a round.

    Args:
        steps: what to time, by name.
        seconds: how long to go on; at least ``MIN_ROUNDS`` rounds, at most ``MAX_ROUNDS``.
        rounds: exactly that many rounds instead.
        clock: the seconds of one call; a device that works on its own has a clock of its own.
    """
    least, most = (rounds, rounds) if rounds else (MIN_ROUNDS, MAX_ROUNDS)
    stop = time.perf_counter() + seconds
    trial = {name: clock(step) for name, step in steps.items()}
    calls = {name: max(1, math.ceil(SAMPLE_SECONDS / taken)) for name, taken in trial.items()}
    samples = {name: [taken] if max(calls.values()) == 1 else [] for name, taken in trial.items()}
    gc.collect()
    gc.disable()
    try:
        while (done := min(map(len, samples.values()))) < most and (done < least or time.perf_counter() < stop):
            for name, step in steps.items():
                samples[name].append(clock(partial(_repeat, step, calls[name])) / calls[name])
    finally:
        gc.enable()
    return {name: Timing.of(taken) for name, taken in samples.items()}


def _repeat(step: Step, times: int) -> None:
    for _ in range(times):
        step()
