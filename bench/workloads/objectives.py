# SPDX-License-Identifier: Apache-2.0
"""The objectives of papers, as the table of :mod:`pycl.testing.objectives` has them: ours, and the formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycl.testing.objectives import OBJECTIVES, Objective
from pycl.testing.objectives.arguments import Rebuild, flattened

from .workload import Function, Workload


@dataclass(frozen=True)
class ObjectiveWorkload(Workload):
    """Inputs are the tensors inside the arguments: parameters of modules, entries of lists."""

    row: Objective

    what: ClassVar[str] = "Objectives of papers, forward and backward; eager is the formula with the whole matrix"

    def inputs(self, size: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        tensors, _ = drawn(self.row, size, dim)
        learned = {name for name in tensors if name.partition("[")[0] not in self.row.constants}
        cast = {name: (x.to(dtype) if x.is_floating_point() else x).to(device) for name, x in tensors.items()}
        return [x.requires_grad_(x.is_floating_point() and name in learned) for name, x in cast.items()]

    def shape(self, size: int | str, dim: int) -> str:
        return f"{size}, d = {dim}"

    def matrix(self, size: int, dim: int) -> tuple[int, int]:
        return size, size

    def floor_flop(self, size: int, dim: int) -> int:
        return 8 * size**2 * dim


def drawn(row: Objective, size: int, dim: int) -> tuple[dict[str, Tensor], Rebuild]:
    """The same tensors at every call, detached, and what makes arguments of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size)
        tensors, rebuild = flattened(row.make(size, dim))
    return {name: x.detach().clone() for name, x in tensors.items()}, rebuild


def summed(row: Objective, call: Callable[..., Sequence[Tensor]]) -> Function:
    """The sum of what an objective returns, as a function of the tensors inside its arguments."""
    _, rebuild = drawn(row, 4, 8)  # arguments of all sizes are made alike

    def function(*inputs: Tensor, **options: str | None) -> Tensor:
        return torch.stack([x.sum() for x in call(rebuild(inputs), row.scalars, **options)]).sum()

    return function


ROWS = {name: row for name, row in OBJECTIVES.items() if row.paper}
OBJECTIVE_WORKLOADS = {
    name: ObjectiveWorkload(summed(row, row), summed(row, row.truth), row=row) for name, row in ROWS.items()
}
