# SPDX-License-Identifier: Apache-2.0
"""What the process of one build does: its answer is checked, then its step is timed whenever it is its turn."""

from __future__ import annotations

import gc
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from ..suites.case import Case
from ..workloads import float64_reference
from ..workloads.workload import step_of
from . import memory, runner
from .correctness import gate, reason_of
from .cpu import Cpu
from .timing import Step, once, repeat
from .worker import Progress

_held: dict[str, Step] = {}


def ready(case: Case, threads: int, check: bool, at: Progress) -> dict[str, Any]:
    """Keep the step; before, check the answer as that of every row.

    Returns ``backend``, ``notes``, ``seconds`` of a call and ``inputs``, which tell whether two builds do the same
    work; or the reason why there is no step under ``refused``.
    """
    _held.clear()
    gc.enable()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(case.precision)
    device = Cpu()
    try:
        inputs = case.inputs(device.torch_device)
        if check:
            gate(case, device.torch_device)
            runner.checked(case, inputs, float64_reference.expected(case.loss, inputs), device)
        step = step_of(case.workload.ours, inputs)
        step()
        seconds = once(step)
        found = {"backend": _backend(case, device), "notes": device.notes(case), "seconds": seconds}
    except Exception as error:  # the other rows can still be measured
        return {"refused": reason_of(error)}
    _held["step"] = step
    gc.collect()
    gc.disable()
    return found | {"inputs": [(tuple(x.shape), str(x.dtype), x.detach().double().sum().item()) for x in inputs]}


def _backend(case: Case, device: Cpu) -> str | None:
    with suppress(AttributeError):  # workloads of another commit say less of what they need
        return runner.backend_of(case, device)
    return None


def sample(calls: int, at: Progress) -> float:
    """Seconds of a call, from as many as a sample takes.

    A short step is called once before: caches are the other process's, and its threads look for work for a while.
    """
    step = _held["step"]
    if calls > 1:
        step()
    return once(partial(repeat, step, calls)) / calls


def peak(job: dict[str, Any], at: Progress) -> dict[str, float]:
    """``peak_mib`` and ``seconds`` of a step, in a process that has done nothing else."""
    return memory.peak_here(job)
