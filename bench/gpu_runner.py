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
from .losses import LOSSES, LossFunction, Row, step_of
from .timing import Timing, interleaved

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
    found = peers.find(peers.PEERS if "peers" in baselines else ())
    record |= {
        "gpu": gpu.describe(),
        "peers": {name: {"version": peer.version, "why_not": peer.why_not} for name, peer in found.items()},
        "not_reached": [],
        "roofs": {},
    }
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
    check = 8 * LOSSES[row.loss].views * checked.size**2 * row.dim / roofs["float64"]
    return SETUP_SECONDS + (3 if alone else PLANNED_CALLS) * row.floor_flop / PLANNED_RATE + check


def measure(
    row: Row,
    baselines: Sequence[str],
    found: Mapping[str, peers.Found],
    *,
    seconds: float,
    rounds: int | None = None,
    stop: float = float("inf"),
) -> dict[str, Any]:
    """The row's record; with a reason under ``"refused"`` and no times where our answer is wrong or fails."""
    record = runner.describe(row) | {"backend": backends.choose(None, row.device), "skipped": {}}
    with runner.matmul_precision(row.precision):
        try:
            record["errors"] = runner.gate(row)
            if row.measure == "one step":
                return record | _one_step(row)
            return record | _times(row, _candidates(row, baselines, found), record["skipped"], seconds, rounds, stop)
        except Exception as error:  # the other rows can still be measured
            refused = _reason(error)
    gpu.release()
    return record | {"refused": refused}


def _candidates(
    row: Row, baselines: Sequence[str], found: Mapping[str, peers.Found]
) -> dict[str, Callable[[], LossFunction]]:
    """What makes each provider's loss, by name; ours first."""
    loss = LOSSES[row.loss]
    wanted = [name for name in baselines if row.baselines is None or name in row.baselines]
    makers: dict[str, Callable[[], LossFunction]] = {"ours": lambda: loss.ours}
    if "eager" in wanted:
        makers["eager"] = lambda: loss.dense
    if "compile" in wanted:
        makers["compile"] = partial(_compiled, loss.dense)
    if "peers" in wanted:
        for name, (peer, _, function, _) in found.items():
            if peer.loss == row.loss and function is not None:
                makers[name] = partial(_itself, function)
    return makers


def _itself(function: LossFunction) -> LossFunction:
    return function


def _compiled(function: LossFunction) -> LossFunction:
    torch.compiler.reset()  # a shape seen before must not make this one dynamic
    return torch.compile(function)


def _times(
    row: Row,
    makers: Mapping[str, Callable[[], LossFunction]],
    skipped: dict[str, str],
    seconds: float,
    rounds: int | None,
    stop: float,
) -> dict[str, Any]:
    inputs = LOSSES[row.loss].inputs(row.size, row.dim, row.dtype, row.device)
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
    if name in {"eager", "compile"} | {peer.name for peer in peers.PEERS if peer.dense}:
        need, free = DENSE_COPIES * row.size**2 * row.dtype.itemsize, gpu.free_bytes()
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
    loss = LOSSES[row.loss]
    points = loss.inputs(math.gcd(DISTINCT, row.size), row.dim, row.dtype, row.device)
    draw = torch.Generator(row.device).manual_seed(row.size)
    pick = torch.randperm(row.size, generator=draw, device=row.device) % len(points[0])
    inputs = [x.detach()[pick].requires_grad_() for x in points]
    exact = truth.repeated(truth.expected(row.loss, points), pick)
    trial = _trial(step_of(loss.ours, inputs), exact)
    limit = LIMITS[runner.format_of(row)]
    if not trial.error <= limit:
        raise runner.Mismatch(f"ours is {trial.error:.2g} from float64 at size {row.size}, limit {limit:g}")
    time_s = {"ours": Timing.of([trial.seconds])._asdict()}
    return {**_of({"ours": trial}), "wrong": {}, "time_s": time_s, "launches": {}, "host_s": {}}


def _reason(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return line if isinstance(error, runner.Mismatch) else f"{type(error).__name__}: {line}"
