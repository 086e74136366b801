# SPDX-License-Identifier: Apache-2.0
"""Times of several functions that do the same work, taken in turn so that a change of the machine hits all of them."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median, quantiles
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


class Ratio(NamedTuple):
    """Quartiles of the ratios of two times of the same round, and what the median may be.

    A group is what one pair of processes did. ``low`` and ``high`` enclose the 95 % interval of the median and the
    medians of all groups: chance between rounds, and what makes one process faster than another. They are ``None``
    where the rounds are too few.
    """

    median: float
    q1: float
    q3: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, groups: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio:
        ratios = [[a / b for a, b in zip(above, below, strict=True)] for above, below in groups]
        together = sorted(itertools.chain(*ratios))
        timing, interval = Timing.of(together), around_median(together)
        ends = None if interval is None else [*interval, *map(median, ratios)]
        low, high = (None, None) if ends is None else (min(ends), max(ends))
        return cls(timing.median, timing.q1, timing.q3, low, high)


def around_median(ordered: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the median, of ordered samples; ``None`` below six.

    A sample is as often below the median as above it, whatever the distribution: how many are below is binomial.
    """
    n = len(ordered)
    below = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n))
    outside = sum(chance <= 0.025 for chance in below)  # samples at either end that the interval can do without
    return (ordered[outside - 1], ordered[-outside]) if outside else None


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
                samples[name].append(clock(partial(repeat, step, calls[name])) / calls[name])
    finally:
        gc.enable()
    return {name: Timing.of(taken) for name, taken in samples.items()}


def in_turn(
    samplers: Mapping[str, Callable[[int], float]],
    one_call: Mapping[str, float],
    *,
    seconds: float,
    rounds: int | None = None,
    least: int = MIN_ROUNDS,
) -> dict[str, list[float]]:
    """The seconds of a call, one sample of everyone a round, as ``interleaved`` but of steps in other processes.

    Args:
        samplers: take a number of calls and return the seconds of one, by name. Every other round goes backwards, so
            that who comes first has no advantage.
        one_call: about the seconds of a call.
        seconds: how long to go on; at least ``least`` rounds, at most ``MAX_ROUNDS``.
        rounds: exactly that many rounds instead.
        least: see ``seconds``.
    """
    least, most = (rounds, rounds) if rounds else (least, MAX_ROUNDS)
    stop = time.perf_counter() + seconds
    calls = {name: max(1, math.ceil(SAMPLE_SECONDS / one_call[name])) for name in samplers}
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    order = list(samplers)
    while (done := len(samples[order[0]])) < most and (done < least or time.perf_counter() < stop):
        for name in order:
            samples[name].append(samplers[name](calls[name]))
        order.reverse()
    return samples


def repeat(step: Step, times: int) -> None:
    """Call a step several times."""
    for _ in range(times):
        step()
