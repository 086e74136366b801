# SPDX-License-Identifier: Apache-2.0
"""What differs between a CPU and a GPU in a measurement: a clock, a first look at a step, the memory, a process."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..suites.case import Case
from .timing import Step
from .worker import Worker

Answer = list[Tensor]


class Trial(NamedTuple):
    """The first calls of a step."""

    answer: Answer
    first_call_s: float
    seconds: float  # of a call after the first, where the device makes one
    memory: Mapping[str, float] = {}  # MiB: "peak_mib" above what was allocated before, "extra_mib" without the answer


class Device(ABC):
    """A device that cases are measured on. The defaults are those of a CPU."""

    torch_device: ClassVar[str]
    limits: ClassVar[Mapping[str, float]]  # distance from float64 allowed at full size, by number format
    slack: ClassVar[float] = 1  # how many limits a competitor may be away from float64 before it is marked as wrong
    slow: ClassVar[float] = inf  # seconds of a competitor's step that is timed once and not in turn
    has_rivals: ClassVar[bool] = False  # whether pycl's other backends are timed, too

    def why_not(self) -> str | None:
        """The reason why nothing can be measured here, or ``None``."""
        return None

    def worker(self) -> Worker:
        """Where cases are measured."""
        return Worker()

    def facts(self) -> dict[str, Any]:
        """What the record says of the device, beside what it says of the machine."""
        return {}

    @abstractmethod
    def clock(self, step: Step) -> float:
        """Seconds of one call."""

    @abstractmethod
    def look(self, step: Callable[[], Answer]) -> Trial:
        """Call a step for the first time."""

    @abstractmethod
    def apart(self, got: Tensor, exact: Tensor) -> float:
        """The distance that ``limits`` are about; infinite where the answer is not a number."""

    @abstractmethod
    def free_bytes(self) -> int:
        """The memory that could still be allocated."""

    def notes(self, case: Case) -> list[str]:
        """What a reader of the case's figures must know of the device."""
        return []

    def beside(self, case: Case) -> dict[str, Step]:
        """Steps that are timed in turn with the providers, for comparison; each was called once."""
        return {}

    def more(self, case: Case, steps: Mapping[str, Step]) -> dict[str, Any]:
        """Further figures of providers' steps."""
        return {}

    def release(self) -> None:
        """Give back what a call that failed left behind; raises where it left nothing to work on."""
        gc.collect()
