# SPDX-License-Identifier: Apache-2.0
"""Measures a row: first whether our answer is right, then how long everyone takes. One loop for all rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pycl import backends, doctor

from . import memory
from .losses import LOSSES, Row, step_of
from .timing import interleaved

BASELINES = ("eager", "compile")
GATE_SIZE = 250  # ragged for every tile size
SLACK = 2.0
# error allowed against float64 beside SLACK times that of eager, relative to the largest entry
FLOOR = {"float32": 4e-6, "float32, high": 1e-4, "bfloat16": 6e-3}
# distance allowed from eager in the same dtype at full size, relative to the largest entry: eager's own error there
FULL_SIZE = {"float32": 1e-3, "bfloat16": 5e-2}


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


def measure(row: Row, baselines: Sequence[str], *, seconds: float, rounds: int | None = None) -> dict[str, Any]:
    """The row's record; with a reason under ``"refused"`` and no times where the answer is wrong."""
    record = describe(row) | {"backend": backends.choose(None, row.device)}
    if row.precision != "highest" and doctor.report()["cpu"]["isa"] != "amx":
        record["notes"].append("no AMX in use, so this is plain float32")
    with matmul_precision(row.precision):
        try:
            record["errors"] = gate(row)
            if row.measure == "memory":
                return record | memory.measure(row, baselines)
            return record | _times(row, baselines, record["notes"], seconds, rounds)
        except (Mismatch, memory.Failed) as reason:
            return record | {"refused": str(reason)}


def describe(row: Row) -> dict[str, Any]:
    """The record of a row before anything is measured."""
    return {
        **asdict(row),
        "label": row.label,
        "dtype": str(row.dtype).removeprefix("torch."),
        "format": format_of(row),
        "floor_flop": row.floor_flop,
        "target": None if row.target is None else {**asdict(row.target), "text": str(row.target)},
        "notes": [],
        "refused": None,
    }


def format_of(row: Row) -> str:
    """The dtype, with the float32 precision where it is not the highest: what errors depend on."""
    name = str(row.dtype).removeprefix("torch.")
    return name if row.precision == "highest" else f"{name}, {row.precision}"


def gate(row: Row) -> dict[str, float]:
    """Errors of loss and gradients at a small size against float64; raises ``Mismatch`` beyond the budget."""
    loss = LOSSES[row.loss]
    inputs = loss.inputs(min(GATE_SIZE, row.size), row.dim, row.dtype, row.device)
    exact = step_of(loss.dense, [x.detach().double().requires_grad_() for x in inputs])()
    eager, ours = step_of(loss.dense, inputs)(), step_of(loss.ours, inputs)()
    floor = FLOOR[format_of(row)]
    errors = {}
    for what, truth, plain, got in zip(_names(inputs), exact, eager, ours, strict=True):
        errors[what] = _distance(got, truth)
        budget = SLACK * _distance(plain, truth) + floor
        if not errors[what] <= budget:  # a NaN fails too
            raise Mismatch(f"{what} is off by {errors[what]:.2g} of its largest entry, budget {budget:.2g}")
    return errors


def _names(inputs: Sequence[Tensor]) -> list[str]:
    return ["loss", *(f"gradient {i}" for i in range(len(inputs)))]


def _distance(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth.double()).abs().max() / truth.double().abs().max()).item()


def _times(row: Row, baselines: Sequence[str], notes: list[str], seconds: float, rounds: int | None) -> dict[str, Any]:
    loss = LOSSES[row.loss]
    inputs = loss.inputs(row.size, row.dim, row.dtype)
    x, y = (torch.randn(row.size, row.dim).to(row.dtype) for _ in range(2))
    steps: dict[str, Callable[[], Any]] = {"ours": step_of(loss.ours, inputs)}
    if "eager" in baselines:
        steps["eager"] = step_of(loss.dense, inputs)
    if "compile" in baselines:
        torch.compiler.reset()  # a shape seen before must not make this one dynamic
        steps["compile"] = step_of(torch.compile(loss.dense), inputs)
    steps["G"] = lambda: torch.mm(x, y.T)
    first = _first_calls(row, steps, notes)
    times = interleaved(steps, seconds=seconds, rounds=rounds)
    return {"first_call_s": first, "time_s": {name: timing._asdict() for name, timing in times.items()}}


def _first_calls(row: Row, steps: dict[str, Callable[[], Any]], notes: list[str]) -> dict[str, float]:
    """Warm up and compare the answers at full size, dropping a baseline that fails; returns seconds by provider."""
    seconds: dict[str, float] = {}
    answers: dict[str, Any] = {}
    for provider, step in list(steps.items()):
        start = time.perf_counter()
        try:
            answers[provider] = step()
        except Exception as error:  # no C++ compiler, or no memory for the matrix: a baseline's trouble is not ours
            if provider == "ours":
                raise
            notes.append(f"{provider} fails: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
            del steps[provider]
            continue
        seconds[provider] = time.perf_counter() - start
    limit = FULL_SIZE[str(row.dtype).removeprefix("torch.")]
    for provider in [name for name in ("ours", "compile") if name in answers and "eager" in answers]:
        apart = max(map(_distance, answers[provider], answers["eager"]))
        if apart <= limit:
            continue
        reason = f"{provider} is {apart:.2g} from eager at size {row.size}, limit {limit:g}"
        if provider == "ours":
            raise Mismatch(reason)
        notes.append(reason)
        del steps[provider]
    return seconds
