# SPDX-License-Identifier: Apache-2.0
"""Measures a case: first whether answers are right, then how long everyone takes. One loop for all cases and devices.

Every provider's value and gradients are compared with float64 at full size. pycl has no time where it is wrong. A
competitor that is wrong is timed all the same, and marked with how far off it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycl.backends import registry

from ..suites.case import Case
from ..workloads import baselines, float64_reference
from ..workloads.registry import FORMS
from ..workloads.workload import Function, step_of
from . import memory
from .correctness import Mismatch, gate, matmul_precision, reason_of
from .device import Answer, Device, Trial
from .timing import Timing, interleaved
from .worker import Progress, unheard

DISTINCT = 2**14  # points of a case that is measured in one step, if they divide it: its float64 answer follows
DENSE_COPIES = 6  # of the matrix that storing it needs at once, about
ALL = "all in turn"  # what is timed when every provider has been tried

Makers = Mapping[str, Callable[[], Function]]


class Plan(NamedTuple):
    """How cases are measured."""

    baselines: tuple[str, ...]
    seconds: float  # spent on the timing of a case, at least three rounds
    rounds: int | None = None  # exactly that many instead


@dataclass(frozen=True)
class Circumstances:
    """What a measurement has to go by besides the case and the plan."""

    stop: float = math.inf  # when the time is up, in ``time.monotonic()``; then ours alone is measured
    skipped: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # whom to leave out, and why
    at: Progress = unheard  # told which provider's code runs next


ANY = Circumstances()


class Tried(NamedTuple):
    step: Callable[[], Answer]
    trial: Trial  # without its answer
    error: float  # distance from float64


def measure(
    case: Case,
    plan: Plan,
    device: Device,
    peers: Sequence[baselines.Found] = (),
    given: Circumstances = ANY,
) -> dict[str, Any]:
    """The case's record; with a reason under ``"refused"`` and no times where our answer is wrong or fails.

    Raises:
        RuntimeError: a call left no device to work on.
    """
    given.at("ours")
    record = case.as_record() | {"backend": backend_of(case, device), "skipped": dict(given.skipped)}
    record["notes"] += device.notes(case)
    with matmul_precision(case.precision):
        try:
            record["errors"] = gate(case, device.torch_device)
            if case.measure == "memory":
                return record | memory.measure(case, plan.baselines)
            if case.measure == "one step":
                return record | _one_step(case, device)
            makers = candidates(case, plan.baselines, peers) | _rivals(case, device, record["backend"])
            kept = {name: make for name, make in makers.items() if name not in given.skipped}
            return record | _times(case, plan, device, kept, record["skipped"], given)
        except Exception as error:  # the other cases can still be measured
            refused = reason_of(error)
    device.release()
    return record | {"refused": refused}


def backend_of(case: Case, device: Device) -> str:
    """What the automatic choice takes."""
    work = case.workload
    name: str = registry.choose(None, device.torch_device, case.dtype, work.operator, work.modifiers)
    return name


def candidates(case: Case, names: Sequence[str], peers: Sequence[baselines.Found]) -> dict[str, Callable[[], Function]]:
    """What makes each provider's function, by name; ours first."""
    forms = {"eager": case.workload.dense, **case.workload.others}
    makers: dict[str, Callable[[], Function]] = {"ours": partial(_itself, case.workload.ours)}
    for name in names:
        if case.baselines is not None and name not in case.baselines:
            continue
        if name in forms:
            makers[name] = partial(_itself, forms[name])
        elif name == "compile":
            makers[name] = partial(_compiled, case.workload.dense)
        elif name == "peers":
            makers |= {
                peer.name: partial(_itself, function)
                for peer, _, function, _ in peers
                if peer.loss == case.loss and function is not None
            }
    return makers


def _itself(function: Function) -> Function:
    return function


def _compiled(function: Function) -> Function:
    torch.compiler.reset()  # a shape seen before must not make this one dynamic
    return torch.compile(function)


def _rivals(case: Case, device: Device, chosen: str) -> dict[str, Callable[[], Function]]:
    """Ours on the backends that the automatic choice passed over, under their names."""
    if not device.has_rivals:
        return {}
    operator, on = case.workload.operator, device.torch_device
    ranked = registry.preferred(on, operator)
    able = [name for name in ranked if registry.why_not(name, on, case.dtype, operator) is None]
    fast = [name for name in able if name not in (chosen, "reference")]
    return {name: partial(partial, case.workload.ours, backend=name) for name in fast}


def _times(
    case: Case,
    plan: Plan,
    device: Device,
    makers: Makers,
    skipped: dict[str, str],
    given: Circumstances,
) -> dict[str, Any]:
    tried = _try_all(case, device, makers, skipped, given)
    given.at(ALL)
    steps = {name: found.step for name, found in tried.items()}
    slow = [name for name, found in tried.items() if name != "ours" and found.trial.seconds > device.slow]
    in_turn = {name: step for name, step in steps.items() if name not in slow} | device.beside(case)
    seconds = min(plan.seconds, max(0.0, given.stop - time.monotonic()))
    times = interleaved(in_turn, seconds=seconds, rounds=plan.rounds, clock=device.clock)
    times |= {name: Timing.of([tried[name].trial.seconds]) for name in slow}
    limit = device.slack * device.limits[case.format]
    return {
        **_of(tried),
        "wrong": {name: found.error for name, found in tried.items() if not found.error <= limit},
        "time_s": {name: timing._asdict() for name, timing in times.items()},
        **device.more(case, steps),
    }


def _try_all(
    case: Case, device: Device, makers: Makers, skipped: dict[str, str], given: Circumstances
) -> dict[str, Tried]:
    """Everyone's first calls; who fails is skipped."""
    inputs = case.inputs(device.torch_device)
    exact = float64_reference.expected(case.loss, inputs)
    tried: dict[str, Tried] = {}
    for name, make in makers.items():
        reason = None if name == "ours" else _why_skip(name, case, device, given.stop)
        if reason is None:
            given.at(name)
            try:
                tried[name] = _try(step_of(make(), inputs), exact, device)
            except Exception as error:  # no compiler, no memory, another GPU: a competitor's trouble is not ours
                if name == "ours":
                    raise
                reason = reason_of(error)
        if reason is not None:
            skipped[name] = reason
            device.release()
        elif name == "ours":
            _check(tried[name], case, device)
    return tried


def _why_skip(name: str, case: Case, device: Device, stop: float) -> str | None:
    if time.monotonic() > stop:
        return "the time was up"
    if name in {"compile", *FORMS} | {peer.name for peer in baselines.PEERS if peer.dense}:
        need, free = DENSE_COPIES * case.matrix_bytes, device.free_bytes()
        if need > free:
            return f"stores the matrix, about {need / 2**30:.0f} GiB; {free / 2**30:.0f} GiB are free"
    return None


def _try(step: Callable[[], Answer], exact: Sequence[Tensor], device: Device) -> Tried:
    trial = device.look(step)
    return Tried(step, trial._replace(answer=[]), max(map(device.apart, trial.answer, exact)))


def checked(case: Case, inputs: Sequence[Tensor], exact: Sequence[Tensor], device: Device) -> Tried:
    """The first call of ours; raises ``Mismatch`` where its answer is wrong at full size."""
    ours = _try(step_of(case.workload.ours, inputs), exact, device)
    _check(ours, case, device)
    return ours


def _check(ours: Tried, case: Case, device: Device) -> None:
    limit = device.limits[case.format]
    if not ours.error <= limit:
        raise Mismatch(f"ours is {ours.error:.2g} from float64 at size {case.size}, limit {limit:g}")


def _of(tried: Mapping[str, Tried]) -> dict[str, dict[str, float]]:
    """What the record keeps of the first calls."""
    kinds = dict.fromkeys(kind for found in tried.values() for kind in found.trial.memory)
    return {
        "first_call_s": {name: found.trial.first_call_s for name, found in tried.items()},
        **{kind: {name: found.trial.memory[kind] for name, found in tried.items()} for kind in kinds},
        "full_size_error": {name: found.error for name, found in tried.items()},
    }


def _one_step(case: Case, device: Device) -> dict[str, Any]:
    """Ours alone, timed once, on points that occur many times in random order."""
    on = device.torch_device
    points = case.at(math.gcd(DISTINCT, case.size)).inputs(on)
    draw = torch.Generator(on).manual_seed(case.size)
    pick = torch.randperm(case.size, generator=draw, device=on) % len(points[0])
    inputs = [x.detach()[pick].requires_grad_() for x in points]
    exact = float64_reference.repeated(float64_reference.expected(case.loss, points), pick)
    ours = checked(case, inputs, exact, device)
    return {
        **_of({"ours": ours}),
        "wrong": {},
        "time_s": {"ours": Timing.of([ours.trial.seconds])._asdict()},
    }
