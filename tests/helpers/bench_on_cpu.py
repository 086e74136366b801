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

from pycl.bench import gpu, gpu_suite, losses, peers, rows, runner, timing
from pycl.bench.gpu_rows import GPU_ROWS
from pycl.bench.gpu_worker import Died

NAME = "NVIDIA H200"
ROOFS = {"bfloat16": 800e12, "float32": 50e12, "float32, high": 400e12, "float64": 50e12, "copy": 4.3e12}
GPU = {"name": NAME, "memory_gib": 141, "multiprocessors": 132, "driver": "1", "cuda": "13", "triton": "3"}
ROWS = {row.name: row for row in GPU_ROWS}
SMALL = rows.Row("clip-64", "clip", 64, 32)
EXITS, ABORTS, BREAKS = 31, 30, 29  # dimensions at which ours exits, a peer aborts, a peer leaves no GPU to work on
ILLEGAL = "CUDA error: an illegal memory access was encountered"


def a_record(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "suite": "gpu", "command": "python -m pycl.bench --suite gpu", "timestamp": "now", "commit": "abc",
        "pycl": "0", "torch": {"version": "2"}, "python": "3", "roofs": ROOFS, "peers": {}, "not_reached": [],
        "gpu": GPU, "rows": rows, "sweep": [],
    } | more  # fmt: skip


def a_row(name: str, seconds: dict[str, float], mib: float = 50.0) -> dict[str, Any]:
    times = {provider: timing.Timing(t, t, t, 3)._asdict() for provider, t in seconds.items()}
    found = runner.describe(ROWS[name]) | {"backend": "triton", "time_s": times, "extra_mib": {"ours": mib}}
    return found | {"wrong": {}, "skipped": {}, "launches": {}, "host_s": {}}


def measured(step: Callable[[], Any]) -> gpu.Measured:
    return gpu.Measured(timing.once(step), 1.5, 1.0, step())


FAKES: dict[str, Callable[..., Any]] = {
    "why_not": lambda: None,
    "describe": lambda: GPU,
    "roofs": lambda: ROOFS,
    "seconds_of": timing.once,
    "measured": measured,
    "launches": lambda step: 7,
    "host_seconds": lambda step: 1e-4,
    "free_bytes": lambda: 2**30,
    "release": lambda: None,
}


def play() -> None:
    """For a process of its own."""
    for name, fake in FAKES.items():
        setattr(gpu, name, fake)


class Here(gpu_suite.Worker):
    """Calls in this process, which has the fakes already."""

    def __init__(self) -> None:
        self.at: list[str] = []

    def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        try:
            return function(*arguments, at=self.at.append)
        except Exception as error:
            raise Died(str(error), self.at[-1]) from error

    def close(self) -> None:
        pass


def play_deadly() -> None:
    """As ``play``, and what is run at some dimensions takes its process down."""
    play()

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
            gpu.release = refuse
            refuse()
        return losses.dense_clip(image, text)

    def refuse() -> None:
        raise RuntimeError(ILLEGAL)

    rows.WORKS["clip"] = replace(rows.WORKS["clip"], ours=ours)
    peers.PEERS = tuple(
        peers.Peer(name, "torch", "clip", lambda function=function: function)
        for name, function in (("aborts", abort), ("breaks", break_down))
    )


def answer(value: int, at: Callable[[str], None]) -> int:
    return value + 1


def sleep(seconds: float, at: Callable[[str], None]) -> None:
    at("sleeping")
    time.sleep(seconds)
