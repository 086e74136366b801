# SPDX-License-Identifier: Apache-2.0
"""The CPU plays the GPU of the suite "gpu": what only a GPU can tell comes from a clock and from constants."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from pycl.bench.measure import timing
from pycl.bench.measure.device import Answer, Trial
from pycl.bench.measure.gpu import Gpu
from pycl.bench.measure.timing import Step
from pycl.bench.measure.worker import Died, Process, Worker
from pycl.bench.suites.case import Case
from pycl.bench.suites.gpu import GPU_CASES
from pycl.bench.workloads import baselines, losses
from pycl.bench.workloads.registry import WORKLOADS

NAME = "NVIDIA H200"
RATES = {"bfloat16": 800e12, "float32": 50e12, "float32, high": 400e12, "float64": 50e12, "copy": 4.3e12}
GPU = {"name": NAME, "memory_gib": 141, "multiprocessors": 132, "driver": "1", "cuda": "13", "triton": "3"}
CASES = {case.name: case for case in GPU_CASES}
SMALL = Case("clip-64", "clip", 64, 32, device="cuda")
EXITS, ABORTS, BREAKS = 31, 30, 29  # dimensions at which ours exits, a peer aborts, a peer leaves no GPU to work on
ILLEGAL = "CUDA error: an illegal memory access was encountered"


def a_record(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "suite": "gpu", "command": "python -m pycl.bench --suite gpu", "timestamp": "now", "commit": "abc",
        "pycl": "0", "torch": {"version": "2"}, "python": "3", "roofline": RATES, "peers": {}, "not_reached": [],
        "gpu": GPU, "rows": rows, "sweep": [],
    } | more  # fmt: skip


def a_row(name: str, seconds: dict[str, float], mib: float = 50.0) -> dict[str, Any]:
    times = {provider: timing.Timing(t, t, t, 3)._asdict() for provider, t in seconds.items()}
    found = CASES[name].as_record() | {"backend": "triton", "time_s": times, "extra_mib": {"ours": mib}}
    return found | {"wrong": {}, "launches": {}, "host_s": {}, "first_call_s": {}}


class Played(Gpu):
    """A GPU whose tensors are the CPU's; everything happens in this process."""

    torch_device = "cpu"
    has_rivals = False

    def why_not(self) -> str | None:
        return None

    def worker(self) -> Worker:
        return Here()

    def facts(self) -> dict[str, Any]:
        return {"gpu": GPU, "roofline": RATES}

    def clock(self, step: Step) -> float:
        return timing.once(step)

    def look(self, step: Callable[[], Answer]) -> Trial:
        return Trial(step(), 0.5, timing.once(step), {"peak_mib": 1.5, "extra_mib": 1.0})

    def launches(self, step: Step) -> int | None:
        return 7

    def host_seconds(self, step: Step) -> float:
        return 1e-4

    def free_bytes(self) -> int:
        return 2**30

    def release(self) -> None:
        pass


class Here(Worker):
    """Calls in this process, and fails as a process of its own would."""

    def __init__(self) -> None:
        self.at: list[str] = []

    def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        try:
            return function(*arguments, at=self.at.append)
        except Exception as error:
            raise Died(str(error), self.at[-1]) from error


class Unusable(Played):
    """A GPU that torch sees and cannot use."""

    def facts(self) -> dict[str, Any]:
        raise RuntimeError(ILLEGAL)


class Deadly(Played):
    """In processes of its own; what is run at some dimensions takes its process down."""

    is_broken = False

    def worker(self) -> Worker:
        return Process(play_deadly)

    def release(self) -> None:
        if Deadly.is_broken:
            raise RuntimeError(ILLEGAL)


def play_deadly() -> None:
    """For a process of its own."""

    def ours(image: Tensor, text: Tensor) -> Tensor:
        if image.shape[1] == EXITS:
            os._exit(3)
        return losses.clip(image, text)

    def abort(image: Tensor, text: Tensor) -> Tensor:
        if image.shape[1] == ABORTS:
            os.kill(os.getpid(), signal.SIGABRT)
        return losses.dense_clip(image, text)

    def break_down(image: Tensor, text: Tensor) -> Tensor:
        if image.shape[1] == BREAKS:
            Deadly.is_broken = True
            raise RuntimeError(ILLEGAL)
        return losses.dense_clip(image, text)

    WORKLOADS["clip"] = replace(WORKLOADS["clip"], ours=ours)
    baselines.PEERS = tuple(
        baselines.Peer(name, "torch", "clip", lambda function=function: function)
        for name, function in (("aborts", abort), ("breaks", break_down))
    )


def answer(value: int, at: Callable[[str], None]) -> int:
    return value + 1


def sleep(seconds: float, at: Callable[[str], None]) -> None:
    at("sleeping")
    time.sleep(seconds)
