# SPDX-License-Identifier: Apache-2.0
"""What a case measures: a function, the dense forms it competes with, its inputs, and the bare operation beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pycl.backends import registry

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Workload(ABC):
    ours: Function  # takes a backend by name
    dense: Function  # the form that stores the matrix and that "compile" compiles; called "eager"
    others: Mapping[str, Function] = field(default_factory=dict, kw_only=True)  # more dense forms, by name
    modifiers: tuple[str, ...] = field(default=(), kw_only=True)  # that a backend needs, too

    operator: ClassVar[str] = registry.PAIRS  # that a backend needs
    value: ClassVar[str] = "loss"
    backward: ClassVar[bool] = True
    what: ClassVar[str] = "Forward and backward"
    bare: ClassVar[str] = "one torch.mm(X, Y.T) of the same shape and dtype"  # G
    rows_are: ClassVar[str] = "rows of the similarity matrix"
    memory: ClassVar[str] = (
        "Peak memory of one step above its inputs with a workspace of 0, gradients included; "
        "~ is scaled from a smaller size squared"
    )
    memory_unit: ClassVar[str] = "GiB"

    @abstractmethod
    def inputs(self, size: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        """The same ones at every call; those that get a gradient require it."""

    @abstractmethod
    def shape(self, size: int | str, dim: int) -> str:
        """A size, or the letter for any, and the width as a label says them."""

    @abstractmethod
    def matrix(self, size: int, dim: int) -> tuple[int, int]:
        """Rows and columns of the matrix that dense forms store."""

    def floor_flop(self, size: int, dim: int) -> int:
        """The operations that no exact implementation can save."""
        return 0

    def floor_bytes(self, size: int, dim: int, dtype: torch.dtype) -> int:
        """The bytes that have to be read and written where they outweigh the operations."""
        return 0

    @property
    def floor(self) -> str | None:
        """The least work in words; ``None`` where no floor is known."""
        return None

    def bare_step(self, size: int, dim: int, dtype: torch.dtype) -> Callable[[], Tensor]:
        """One operation ``G`` that does as little as possible to a whole matrix."""
        x, y = (torch.randn(rows, dim).to(dtype) for rows in self.matrix(size, dim))
        return lambda: torch.mm(x, y.T)


def step_of(function: Function, inputs: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """A call, and a backward pass where inputs require a gradient: the value, then the gradients."""
    wanted = [x for x in inputs if x.requires_grad]

    def step() -> list[Tensor]:
        value = function(*inputs)
        return [value.detach(), *(torch.autograd.grad(value, wanted) if wanted else ())]

    return step


def in_float64(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Integers stay as they are."""
    return [x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs]
