# SPDX-License-Identifier: Apache-2.0
"""Measuring on the first CUDA GPU: its own clock, what it allocates, launches, and processes that may die."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pycl import doctor

from ..suites.case import Case
from . import roofline
from .correctness import length_apart
from .device import Answer, Device, Trial
from .timing import Step
from .worker import Process, Worker

HOST_CALLS = 20  # few enough that the queue of launches never fills up
SMALL = 2048  # rows up to which launches and the host's time are what counts


class Gpu(Device):
    torch_device = "cuda"
    # relative to the length of the gradient
    limits: ClassVar = {"bfloat16": 6e-3, "float32": 1e-5, "float32, high": 2e-3}
    slack = 5
    slow = 1.0
    has_rivals = True

    def why_not(self) -> str | None:
        return why_not()

    def worker(self) -> Worker:
        return Process()

    def facts(self) -> dict[str, Any]:
        return {"gpu": describe(), "roofline": roofline.rates(self.clock, self.torch_device)}

    def clock(self, step: Step) -> float:
        """Seconds between the start of a call's first kernel and the end of its last."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def look(self, step: Callable[[], Answer]) -> Trial:
        """Two calls: the first compiles, the second is looked at."""
        start = time.perf_counter()
        self.clock(step)
        first_call = time.perf_counter() - start
        answers: list[Answer] = []
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = self.clock(lambda: answers.append(step()))
        peak = torch.cuda.max_memory_allocated() - before
        memory = {"peak_mib": peak / 2**20, "extra_mib": (peak - held_bytes(answers[0])) / 2**20}
        return Trial(answers[0], first_call, seconds, memory)

    def apart(self, got: Tensor, exact: Tensor) -> float:
        return length_apart(got, exact)

    def free_bytes(self) -> int:
        """What could still be allocated, with what torch keeps for itself."""
        free, _ = torch.cuda.mem_get_info()
        return int(free) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def more(self, case: Case, steps: Mapping[str, Step]) -> dict[str, Any]:
        small = [name for name in ("ours", "eager") if name in steps and case.size <= SMALL]
        return {
            "launches": {name: self.launches(steps[name]) for name in small},
            "host_s": {name: self.host_seconds(steps[name]) for name in small},
        }

    def launches(self, step: Step) -> int | None:
        """What one call puts on the queue: kernels, copies and fills; ``None`` where the profiler sees nothing."""
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step()
            torch.cuda.synchronize()
        return sum(event.device_type.name == "CUDA" for event in seen.events() or ()) or None

    def host_seconds(self, step: Step) -> float:
        """Seconds the host needs to issue one call, the GPU not waited for."""

        def issue() -> float:
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(HOST_CALLS):
                step()
            return (time.perf_counter() - start) / HOST_CALLS

        return median(issue() for _ in range(3))

    def release(self) -> None:
        super().release()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def why_not() -> str | None:
    """The reason why nothing can be measured on a GPU here, or ``None``."""
    if torch.cuda.is_available():
        return None
    return f"no CUDA GPU that torch can use (torch {torch.__version__}, {doctor.torch_build()})"


def describe() -> dict[str, Any]:
    """The first GPU and the software that drives it."""
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": found.total_memory / 2**30,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": doctor.report()["triton"],
    }


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split("\n")[0].strip() or None


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """The memory they keep, that of views of the same memory once."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())
