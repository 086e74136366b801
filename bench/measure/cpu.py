# SPDX-License-Identifier: Apache-2.0
"""Measuring on a CPU: the wall clock, in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from pycl import doctor

from ..suites.case import Case
from .correctness import largest_apart
from .device import Answer, Device, Trial
from .timing import Step, once


class Cpu(Device):
    torch_device = "cpu"
    # relative to the largest entry: about eager's own error at full size
    limits: ClassVar = {"float32": 1e-3, "float32, medium": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}

    def clock(self, step: Step) -> float:
        return once(step)

    def look(self, step: Callable[[], Answer]) -> Trial:
        start = time.perf_counter()
        answer = step()
        seconds = time.perf_counter() - start
        return Trial(answer, seconds, seconds)

    def apart(self, got: Tensor, exact: Tensor) -> float:
        return largest_apart(got, exact)

    def free_bytes(self) -> int:
        try:
            return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 2**10
        except (OSError, IndexError):
            return sys.maxsize

    def notes(self, case: Case) -> list[str]:
        if case.precision == "highest" or doctor.report()["cpu"]["isa"] == "amx":
            return []
        return ["no AMX in use, so this is plain float32"]

    def beside(self, case: Case) -> dict[str, Step]:
        step = case.workload.bare_step(case.size, case.dim, case.dtype)
        step()
        return {"G": step}
