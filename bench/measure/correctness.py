# SPDX-License-Identifier: Apache-2.0
"""Whether an answer is right: the gate in front of the clock, at a small size against float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf

import torch
from torch import Tensor

from pycl.core import precision

from ..suites.case import Case
from ..workloads import float64_reference
from ..workloads.workload import Workload, step_of

GATE_SIZE = 250  # ragged for every tile size
SLACK = 2.0
# error allowed against float64 beside SLACK times that of eager, relative to the largest entry
FLOOR = {"float32": 4e-6, "float32, high": 1e-4, "float32, medium": 1e-4, "bfloat16": 6e-3, "float16": 1e-3}


class Refusal(Exception):
    """Why a case has no figures, in words that need no name of an exception before them."""


class Mismatch(Refusal):
    """An implementation does not compute the loss it is timed for."""


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = precision.of_cuda()  # of the switches that this sets, those of CPU and GPU
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def gate(case: Case, device: str) -> dict[str, float]:
    """Errors of value and gradients at a small size against float64; raises ``Mismatch`` beyond the budget."""
    workload = case.workload
    inputs = case.at(min(GATE_SIZE, case.size)).inputs(device)
    exact = float64_reference.expected(case.loss, inputs)
    eager, ours = step_of(workload.dense, inputs)(), step_of(workload.ours, inputs)()
    floor = FLOOR[case.format]
    errors = {}
    for what, right, plain, got in zip(_names(workload, inputs), exact, eager, ours, strict=True):
        errors[what] = largest_apart(got, right)
        granted = largest_apart(plain, right)
        budget = (SLACK * granted if granted < inf else 0.0) + floor
        if errors[what] > budget:
            raise Mismatch(f"{what} is off by {errors[what]:.2g} of its largest entry, budget {budget:.2g}")
    return errors


def _names(workload: Workload, inputs: Sequence[Tensor]) -> list[str]:
    return [workload.value, *(f"gradient {i}" for i, x in enumerate(inputs) if x.requires_grad)]


def largest_apart(got: Tensor, exact: Tensor) -> float:
    """The largest difference of two entries over the largest entry; infinite where it is not a number."""
    apart = ((got.double() - exact).abs().max() / exact.abs().max()).item()
    return inf if apart != apart else float(apart)


def length_apart(got: Tensor, exact: Tensor) -> float:
    """The length of the difference over the length; infinite where it is not a number."""
    apart = ((got.double() - exact).norm() / exact.norm()).item()
    return inf if apart != apart else float(apart)


def reason_of(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return line if isinstance(error, Refusal) else f"{type(error).__name__}: {line}"
