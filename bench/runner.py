# SPDX-License-Identifier: Apache-2.0
"""Measures a row: first whether answers are right, then how long everyone takes. One loop for all rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pycl import doctor
from pycl.backends import registry as backends

from . import memory, peers, truth
from .rows import WORKS, Row
from .timing import interleaved
from .work import Function, Work, in_float64, step_of

FORMS = ("eager", *dict.fromkeys(name for work in WORKS.values() for name in work.others))
GATE_SIZE = 250  # ragged for every tile size
SLACK = 2.0
# error allowed against float64 beside SLACK times that of eager, relative to the largest entry
FLOOR = {"float32": 4e-6, "float32, medium": 1e-4, "bfloat16": 6e-3, "float16": 1e-3}
# distance allowed from float64 at full size, relative to the largest entry: about eager's own error there
FULL_SIZE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


class Mismatch(AssertionError):
    """An implementation does not compute the loss it is timed for."""


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def find_peers(record: dict[str, Any], rows: Sequence[Row], baselines: Sequence[str]) -> list[peers.Found]:
    """Those that compute what the rows measure, if peers are among the baselines; the record says what was found."""
    works = {row.loss for row in rows}
    found = peers.find(peer for peer in peers.PEERS if "peers" in baselines and peer.loss in works)
    record["peers"] = peers.versions(found)
    return found


def measure(
    row: Row,
    baselines: Sequence[str],
    found: Sequence[peers.Found] = (),
    *,
    seconds: float,
    rounds: int | None = None,
) -> dict[str, Any]:
    """The row's record; with a reason under ``"refused"`` and no times where our answer is wrong."""
    record = describe(row) | {"backend": backend_of(row)}
    if row.precision != "highest" and doctor.report()["cpu"]["isa"] != "amx":
        record["notes"].append("no AMX in use, so this is plain float32")
    with matmul_precision(row.precision):
        try:
            record["errors"] = gate(row)
            if row.measure == "memory":
                return record | memory.measure(row, baselines)
            return record | _times(row, candidates(row, baselines, found), record["notes"], seconds, rounds)
        except (Mismatch, memory.Failed) as reason:
            return record | {"refused": str(reason)}


def backend_of(row: Row) -> str:
    """What the automatic choice takes."""
    name: str = backends.choose(None, row.device, row.dtype, row.work.operator)
    return name


def describe(row: Row) -> dict[str, Any]:
    """The record of a row before anything is measured."""
    return {
        **asdict(row),
        "label": row.label,
        "dtype": str(row.dtype).removeprefix("torch."),
        "format": format_of(row),
        "floor_flop": row.floor_flop,
        "floor_bytes": row.floor_bytes,
        "target": None if row.target is None else {**asdict(row.target), "text": str(row.target)},
        "notes": [],
        "refused": None,
    }


def format_of(row: Row) -> str:
    """The dtype, with the float32 precision where it is not the highest: what errors depend on."""
    name = str(row.dtype).removeprefix("torch.")
    return name if row.precision == "highest" else f"{name}, {row.precision}"


def gate(row: Row) -> dict[str, float]:
    """Errors of value and gradients at a small size against float64; raises ``Mismatch`` beyond the budget."""
    work = row.work
    inputs = work.inputs(min(GATE_SIZE, row.size), row.dim, row.dtype, row.device)
    exact = step_of(work.dense, in_float64(inputs))()
    eager, ours = step_of(work.dense, inputs)(), step_of(work.ours, inputs)()
    floor = FLOOR[format_of(row)]
    errors = {}
    for what, right, plain, got in zip(_names(work, inputs), exact, eager, ours, strict=True):
        errors[what] = _distance(got, right)
        granted = _distance(plain, right)
        budget = (SLACK * granted if granted < math.inf else 0.0) + floor
        if errors[what] > budget:
            raise Mismatch(f"{what} is off by {errors[what]:.2g} of its largest entry, budget {budget:.2g}")
    return errors


def _names(work: Work, inputs: Sequence[Tensor]) -> list[str]:
    return [work.value, *(f"gradient {i}" for i, x in enumerate(inputs) if x.requires_grad)]


def _distance(got: Tensor, right: Tensor) -> float:
    apart = ((got.double() - right.double()).abs().max() / right.double().abs().max()).item()
    return math.inf if math.isnan(apart) else apart


def candidates(row: Row, baselines: Sequence[str], found: Sequence[peers.Found]) -> dict[str, Callable[[], Function]]:
    """What makes each provider's function, by name; ours first."""
    forms = {"eager": row.work.dense, **row.work.others}
    makers: dict[str, Callable[[], Function]] = {"ours": partial(_itself, row.work.ours)}
    for name in baselines:
        if row.baselines is not None and name not in row.baselines:
            continue
        if name in forms:
            makers[name] = partial(_itself, forms[name])
        elif name == "compile":
            makers[name] = partial(_compiled, row.work.dense)
        elif name == "peers":
            makers |= {
                peer.name: partial(_itself, function)
                for peer, _, function, _ in found
                if peer.loss == row.loss and function is not None
            }
    return makers


def _itself(function: Function) -> Function:
    return function


def _compiled(function: Function) -> Function:
    torch.compiler.reset()  # a shape seen before must not make this one dynamic
    return torch.compile(function)


def _times(
    row: Row,
    makers: Mapping[str, Callable[[], Function]],
    notes: list[str],
    seconds: float,
    rounds: int | None,
) -> dict[str, Any]:
    work = row.work
    inputs = work.inputs(row.size, row.dim, row.dtype)
    steps: dict[str, Callable[[], Any]] = {}
    first: dict[str, float] = {}
    wrong: dict[str, float] = {}
    exact = truth.expected(row.loss, inputs)
    limit = FULL_SIZE[str(row.dtype).removeprefix("torch.")]
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            step = step_of(make(), inputs)
            answer = step()
        except Exception as error:  # no C++ compiler, or no memory for the matrix: a baseline's trouble is not ours
            if name == "ours":
                raise
            notes.append(f"{name} fails: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
            continue
        first[name] = time.perf_counter() - start
        steps[name] = step
        apart = max(map(_distance, answer, exact))
        if apart <= limit:
            continue
        if name == "ours":
            raise Mismatch(f"ours is {apart:.2g} from float64 at size {row.size}, limit {limit:g}")
        wrong[name] = apart
    del exact, answer
    steps["G"] = work.bare_step(row.size, row.dim, row.dtype)
    steps["G"]()
    times = interleaved(steps, seconds=seconds, rounds=rounds)
    return {
        "first_call_s": first,
        "wrong": wrong,
        "time_s": {name: timing._asdict() for name, timing in times.items()},
    }
