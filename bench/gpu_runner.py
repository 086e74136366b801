# SPDX-License-Identifier: Apache-2.0
"""Measures a row of the suite "gpu".

Every provider's value and gradients are compared with float64 at full size. Ours has no time where they are wrong; a
peer that is wrong is timed all the same, and marked with how far off it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycl.backends import registry as backends

from . import gpu, peers, runner, truth
from .rows import Row
from .timing import Timing, interleaved
from .work import Function, step_of

# distance allowed from float64, relative to the length of the gradient; others may be this many times as far
LIMITS = {"bfloat16": 6e-3, "float32": 1e-5, "float32, high": 2e-3}
OTHERS_SLACK = 5
DISTINCT = 2**14  # points of a row that is measured in one step, if they divide it: its float64 answer follows
SLOW = 1.0  # seconds of a baseline's step that is timed once and not in turn with the others
SMALL = 2048  # rows up to which launches and the host's time are what counts
DENSE_COPIES = 6  # of the matrix that storing it needs at once, about

ALL = "all in turn"  # what is timed when every provider has been tried
Step = Callable[[], list[Tensor]]
Progress = Callable[[str], None]


def unheard(_: str) -> None:
    """Progress that nobody follows."""


class Trial(NamedTuple):
    """A provider's first calls: how long it compiles, what it needs, whether it is right."""

    first_call_s: float
    seconds: float
    peak_mib: float
    extra_mib: float
    error: float


def measure(
    row: Row,
    baselines: Sequence[str],
    found: Sequence[peers.Found],
    *,
    seconds: float,
    rounds: int | None = None,
    stop: float = float("inf"),
    skipped: Mapping[str, str] = MappingProxyType({}),
    at: Progress = unheard,
) -> dict[str, Any]:
    """The row's record; with a reason under ``"refused"`` and no times where our answer is wrong or fails.

    Args:
        row: what to measure.
        baselines: whom to compare with.
        found: the peers.
        seconds: spent on the timing, at least three rounds.
        rounds: exactly that many rounds instead.
        stop: when the time is up, in ``time.monotonic()``; then ours alone is measured.
        skipped: providers to leave out, and why.
        at: told which provider's code runs next.

    Raises:
        RuntimeError: a call left no GPU to work on.
    """
    at("ours")
    record = runner.describe(row) | {"backend": runner.backend_of(row), "skipped": dict(skipped)}
    with runner.matmul_precision(row.precision):
        try:
            record["errors"] = runner.gate(row)
            if row.measure == "one step":
                return record | _one_step(row)
            makers = runner.candidates(row, baselines, found) | _other_backends(row, record["backend"])
            kept = {name: make for name, make in makers.items() if name not in skipped}
            return record | _times(row, kept, record["skipped"], seconds, rounds, stop, at)
        except Exception as error:  # the other rows can still be measured
            refused = reason_of(error)
    gpu.release()
    return record | {"refused": refused}


def _other_backends(row: Row, chosen: str) -> dict[str, Callable[[], Function]]:
    """Ours on those the automatic choice passed over, under their names."""
    operator = row.work.operator
    ranked = backends.PREFERENCE_OF.get(operator, backends.PREFERENCE)[row.device]
    able = [name for name in ranked if backends.why_not(name, row.device, row.dtype, operator) is None]
    fast = [name for name in able if name not in (chosen, "reference")]
    return {name: partial(partial, row.work.ours, backend=name) for name in fast}


def _times(
    row: Row,
    makers: Mapping[str, Callable[[], Function]],
    skipped: dict[str, str],
    seconds: float,
    rounds: int | None,
    stop: float,
    at: Progress,
) -> dict[str, Any]:
    inputs = row.work.inputs(row.size, row.dim, row.dtype, row.device)
    exact = truth.expected(row.loss, inputs)
    limit = LIMITS[runner.format_of(row)]
    steps: dict[str, Step] = {}
    trials: dict[str, Trial] = {}
    for name, make in makers.items():
        reason = None if name == "ours" else _why_skip(name, row, stop)
        if reason is None:
            at(name)
            try:
                step = step_of(make(), inputs)
                trials[name] = _trial(step, exact)
                steps[name] = step
            except Exception as error:  # not installed for this GPU, or no memory: a baseline's trouble is not ours
                if name == "ours":
                    raise
                reason = reason_of(error)
        if reason is not None:
            skipped[name] = reason
            gpu.release()
        elif name == "ours" and not trials[name].error <= limit:
            raise runner.Mismatch(f"ours is {trials[name].error:.2g} from float64 at size {row.size}, limit {limit:g}")
    at(ALL)
    slow = [name for name in steps if name != "ours" and trials[name].seconds > SLOW]
    in_turn = {name: step for name, step in steps.items() if name not in slow}
    left = min(seconds, max(0.0, stop - time.monotonic()))
    times = interleaved(in_turn, seconds=left, rounds=rounds, clock=gpu.seconds_of)
    times |= {name: Timing.of([trials[name].seconds]) for name in slow}
    small = [name for name in ("ours", "eager") if name in steps and row.size <= SMALL]
    wrong = {n: t.error for n, t in trials.items() if not t.error <= OTHERS_SLACK * limit}
    return {
        **_of(trials),
        "wrong": wrong,
        "time_s": {name: timing._asdict() for name, timing in times.items()},
        "launches": {name: gpu.launches(steps[name]) for name in small},
        "host_s": {name: gpu.host_seconds(steps[name]) for name in small},
    }


def _of(trials: Mapping[str, Trial]) -> dict[str, dict[str, float]]:
    """What the record keeps of the first calls."""
    return {
        "first_call_s": {name: trial.first_call_s for name, trial in trials.items()},
        "peak_mib": {name: trial.peak_mib for name, trial in trials.items()},
        "extra_mib": {name: trial.extra_mib for name, trial in trials.items()},
        "full_size_error": {name: trial.error for name, trial in trials.items()},
    }


def _why_skip(name: str, row: Row, stop: float) -> str | None:
    if time.monotonic() > stop:
        return "the time was up"
    if name in {"compile", *runner.FORMS} | {peer.name for peer in peers.PEERS if peer.dense}:
        need, free = DENSE_COPIES * row.matrix_bytes, gpu.free_bytes()
        if need > free:
            return f"stores the matrix, about {need / 2**30:.0f} GiB; {free / 2**30:.0f} GiB are free"
    return None


def _trial(step: Step, exact: Sequence[Tensor]) -> Trial:
    """Two calls: the first compiles, the second is looked at."""
    start = time.perf_counter()
    gpu.seconds_of(step)
    first_call = time.perf_counter() - start
    seconds, peak_mib, extra_mib, answer = gpu.measured(step)
    return Trial(first_call, seconds, peak_mib, extra_mib, max(map(_distance, answer, exact)))


def _distance(got: Tensor, truth: Tensor) -> float:
    apart = ((got.double() - truth).norm() / truth.norm()).item()
    return apart if apart == apart else float("inf")


def _one_step(row: Row) -> dict[str, Any]:
    """Ours alone, timed once, on points that occur many times in random order."""
    points = row.work.inputs(math.gcd(DISTINCT, row.size), row.dim, row.dtype, row.device)
    draw = torch.Generator(row.device).manual_seed(row.size)
    pick = torch.randperm(row.size, generator=draw, device=row.device) % len(points[0])
    inputs = [x.detach()[pick].requires_grad_() for x in points]
    exact = truth.repeated(truth.expected(row.loss, points), pick)
    trial = _trial(step_of(row.work.ours, inputs), exact)
    limit = LIMITS[runner.format_of(row)]
    if not trial.error <= limit:
        raise runner.Mismatch(f"ours is {trial.error:.2g} from float64 at size {row.size}, limit {limit:g}")
    time_s = {"ours": Timing.of([trial.seconds])._asdict()}
    return {**_of({"ours": trial}), "wrong": {}, "time_s": time_s, "launches": {}, "host_s": {}}


def reason_of(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return line if isinstance(error, runner.Mismatch) else f"{type(error).__name__}: {line}"
