# SPDX-License-Identifier: Apache-2.0
"""Measures the rows of the suite "gpu" in the order they come, until the time is up.

Every provider's value and gradients are compared with float64 at full size. Ours has no time where they are wrong; a
peer that is wrong is timed all the same, and marked with how far off it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycl import backends

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

PLANNED_RATE = 500e12  # operations a second that a run is planned with
PLANNED_CALLS = 40  # of ours that a row is worth, baselines included
SETUP_SECONDS = 10.0  # compiling

Step = Callable[[], list[Tensor]]
Progress = Callable[[str], None]


class Trial(NamedTuple):
    """A provider's first calls: how long it compiles, what it needs, whether it is right."""

    first_call_s: float
    seconds: float
    peak_mib: float
    error: float


def run(
    record: dict[str, Any],
    rows: Sequence[Row],
    baselines: Sequence[str],
    *,
    budget: float,
    seconds: float,
    rounds: int | None = None,
    progress: Progress = lambda _: None,
) -> None:
    """Fill a record; a row that does not fit into what is left of ``budget`` seconds is listed as not reached.

    ``progress`` is told what comes next.
    """
    stop = time.monotonic() + budget
    found = runner.find_peers(record, rows, baselines)
    record |= {"gpu": gpu.describe(), "not_reached": [], "roofs": {}}
    progress("roofs")
    record["roofs"] = gpu.roofs()
    for row in rows:
        need, left = predicted_seconds(row, record["roofs"]), stop - time.monotonic()
        if need > left:
            reason = f"needs about {need:.0f} s, {max(left, 0):.0f} s of {budget:.0f} s were left"
            record["not_reached"].append({**runner.describe(row), "reason": reason})
            continue
        progress(row.label)
        record["rows"].append(measure(row, baselines, found, seconds=seconds, rounds=rounds, stop=stop))


def predicted_seconds(row: Row, roofs: Mapping[str, float]) -> float:
    alone = row.measure == "one step"
    checked = row.at(DISTINCT) if alone else row
    check = 4 * checked.floor_flop / roofs["float64"]
    return SETUP_SECONDS + (3 if alone else PLANNED_CALLS) * row.floor_flop / PLANNED_RATE + check


def measure(
    row: Row,
    baselines: Sequence[str],
    found: Sequence[peers.Found],
    *,
    seconds: float,
    rounds: int | None = None,
    stop: float = float("inf"),
) -> dict[str, Any]:
    """The row's record; with a reason under ``"refused"`` and no times where our answer is wrong or fails."""
    record = runner.describe(row) | {"backend": runner.backend_of(row), "skipped": {}}
    with runner.matmul_precision(row.precision):
        try:
            record["errors"] = runner.gate(row)
            if row.measure == "one step":
                return record | _one_step(row)
            makers = runner.candidates(row, baselines, found) | _other_backends(row, record["backend"])
            return record | _times(row, makers, record["skipped"], seconds, rounds, stop)
        except Exception as error:  # the other rows can still be measured
            refused = _reason(error)
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
) -> dict[str, Any]:
    inputs = row.work.inputs(row.size, row.dim, row.dtype, row.device)
    exact = truth.expected(row.loss, inputs)
    limit = LIMITS[runner.format_of(row)]
    steps: dict[str, Step] = {}
    trials: dict[str, Trial] = {}
    for name, make in makers.items():
        reason = None if name == "ours" else _why_skip(name, row, stop)
        if reason is None:
            try:
                step = step_of(make(), inputs)
                trials[name] = _trial(step, exact)
                steps[name] = step
            except Exception as error:  # not installed for this GPU, or no memory: a baseline's trouble is not ours
                if name == "ours":
                    raise
                reason = _reason(error)
        if reason is not None:
            skipped[name] = reason
            gpu.release()
        elif name == "ours" and not trials[name].error <= limit:
            raise runner.Mismatch(f"ours is {trials[name].error:.2g} from float64 at size {row.size}, limit {limit:g}")
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
    seconds, peak_mib, answer = gpu.measured(step)
    return Trial(first_call, seconds, peak_mib, max(map(_distance, answer, exact)))


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


def _reason(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return line if isinstance(error, runner.Mismatch) else f"{type(error).__name__}: {line}"
