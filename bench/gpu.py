# SPDX-License-Identifier: Apache-2.0
"""The GPU as the benchmark sees it: what it is, the two rates that bound everything, a clock, peak memory, launches."""

from __future__ import annotations

import gc
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pycl import doctor

from .runner import matmul_precision
from .timing import Step, interleaved

MATMUL_SIZE = 8192
FLOAT64_SIZE = 4096  # some GPUs take a second for a float64 product of MATMUL_SIZE
COPIED_FLOATS = 2**29  # 2 GiB, beyond every cache
ROOF_SECONDS = 0.3
HOST_CALLS = 20  # few enough that the queue of launches never fills up


class Measured(NamedTuple):
    seconds: float
    peak_mib: float  # above what was allocated before, the answer included
    extra_mib: float  # without the answer
    answer: list[Tensor]


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


def file_name(gpu_name: str) -> str:
    """``"NVIDIA H200"`` becomes ``"nvidia-h200"``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu_name.lower()).strip("-")


def roofs(device: str = "cuda") -> dict[str, float]:
    """Operations a second of a large product in every number format, and bytes a second of a large copy.

    Random data: products of zeros draw less power and run faster than anything real.
    """
    return {
        "bfloat16": _matmul_rate(torch.bfloat16, MATMUL_SIZE, device),
        "float32": _matmul_rate(torch.float32, MATMUL_SIZE, device),
        "float32, high": _matmul_rate(torch.float32, MATMUL_SIZE, device, "high"),
        "float64": _matmul_rate(torch.float64, FLOAT64_SIZE, device),
        "copy": _copy_rate(device),
    }


def _copy_rate(device: str) -> float:
    x = torch.randn(COPIED_FLOATS, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / _median(lambda: y.copy_(x))  # read and written


def _matmul_rate(dtype: torch.dtype, size: int, device: str, precision: str = "highest") -> float:
    x, y = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with matmul_precision(precision):
        return 2 * size**3 / _median(lambda: torch.mm(x, y))


def _median(step: Step) -> float:
    step()
    return interleaved({"it": step}, seconds=ROOF_SECONDS, clock=seconds_of)["it"].median


def seconds_of(step: Step) -> float:
    """Seconds between the start of a call's first kernel and the end of its last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def measured(step: Callable[[], list[Tensor]]) -> Measured:
    """One call with its time, its answer, and the memory it needed at most."""
    answers: list[list[Tensor]] = []
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(lambda: answers.append(step()))
    peak = torch.cuda.max_memory_allocated() - before
    return Measured(seconds, peak / 2**20, (peak - held_bytes(answers[0])) / 2**20, answers[0])


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """The memory they keep, that of views of the same memory once."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def launches(step: Step) -> int | None:
    """What one call puts on the GPU's queue: kernels, copies and fills; ``None`` where the profiler sees nothing."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in seen.events() or ()) or None


def host_seconds(step: Step) -> float:
    """Seconds the host needs to issue one call, the GPU not waited for."""

    def once() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(HOST_CALLS):
            step()
        return (time.perf_counter() - start) / HOST_CALLS

    return median(once() for _ in range(3))


def free_bytes() -> int:
    """What could still be allocated, with what torch keeps for itself."""
    free, _ = torch.cuda.mem_get_info()
    return int(free) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def release() -> None:
    """Give back what a call that failed left behind; raises where it left no GPU to work on."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
