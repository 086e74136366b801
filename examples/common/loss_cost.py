# SPDX-License-Identifier: Apache-2.0
"""Time and memory of one loss step, forward and backward: pycl against the same formula in dense eager PyTorch.

Time is the median of runs that alternate between the two, in one process. Memory is the growth of the resident
high-water mark over one step, in a process of its own for every number: unlike torch's own statistics it sees what
compiled code allocates. The gradient, which both return, counts too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pycl
from pycl.bench.workloads import dense

Loss = Callable[[Tensor], Tensor]
SIDES = ("dense", "pycl")
TOO_SLOW = 2.5  # seconds; twice the instances take four times as long
WARM_UP = 64  # instances; loads the code and starts the threads before anything is measured


def make_loss(name: str, side: str, temperature: float) -> Loss:
    """The loss on views of that name, ``side`` being "pycl" or "dense", which stores its matrices."""
    function = getattr(pycl.functional, name) if side == "pycl" else dense.fastest(name)
    return lambda views: function(views, temperature=temperature)


class Cost(NamedTuple):
    """One row of the comparison. Memory is None on Windows, which has no such mark."""

    instances: int
    dense_ms: float
    pycl_ms: float
    dense_mib: float | None
    pycl_mib: float | None
    relative_difference: float


def measure(name: str, sizes: Sequence[int], *, views: int, dim: int, temperature: float, seconds: float) -> list[Cost]:
    """Costs at each number of instances, timed for ``seconds`` each; stops early where a step takes ``TOO_SLOW``."""
    timed: list[tuple[int, float, float, float]] = []
    for n in sizes:
        if timed and max(timed[-1][1:3]) > TOO_SLOW:
            break
        timed.append((n, *_time(name, n, views, dim, temperature, seconds)))
    jobs = [[side, name, n, views, dim, temperature, torch.get_num_threads()] for n, *_ in timed for side in SIDES]
    memory = iter(_memory(jobs))
    return [Cost(n, 1e3 * theirs, 1e3 * ours, next(memory), next(memory), apart) for n, theirs, ours, apart in timed]


def _step(loss: Loss, x: Tensor) -> Tensor:
    value = loss(x)
    value.backward()
    return value.detach()


def _points(views: int, n: int, dim: int) -> Tensor:
    return torch.randn(views, n, dim, generator=torch.Generator().manual_seed(n)).requires_grad_()


def _time(name: str, n: int, views: int, dim: int, temperature: float, seconds: float) -> tuple[float, float, float]:
    """Median seconds of both sides, and how far their losses are apart."""
    x = _points(views, n, dim)
    sides = [make_loss(name, side, temperature) for side in SIDES]
    values = [_step(loss, x).item() for loss in sides]
    times: tuple[list[float], list[float]] = ([], [])
    stop = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < stop:
        for loss, taken in zip(sides, times, strict=True):
            x.grad = None
            start = time.perf_counter()
            _step(loss, x)
            taken.append(time.perf_counter() - start)
    return median(times[0]), median(times[1]), abs(values[1] - values[0]) / abs(values[0])


def _memory(jobs: list[list[str | float]]) -> list[float | None]:
    """One new interpreter, which has run nothing yet and so may fork, measures all jobs."""
    if sys.platform == "win32":
        return [None] * len(jobs)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the pycl that is imported here
    command = [sys.executable, __file__, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"the measurement of memory failed:\n{done.stderr}")
    return json.loads(done.stdout)


def _in_fork(job: list[Any]) -> float:
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: send.send(_memory_here(*job)))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"job {job} ended with exit code {process.exitcode}")
    return receive.recv()


def _memory_here(side: str, name: str, n: int, views: int, dim: int, temperature: float, threads: int) -> float:
    """MiB that one step adds to the high-water mark of this process."""
    torch.set_num_threads(threads)
    loss = make_loss(name, side, temperature)
    _step(loss, _points(views, min(n, WARM_UP), dim))
    x = _points(views, n, dim)
    before = high_water_mib()
    _step(loss, x)
    return high_water_mib() - before


def high_water_mib() -> float:
    """The most resident memory that this process had."""
    # Linux's ru_maxrss will not do: it starts at the size of the process that started this one
    if (status := Path("/proc/self/status")).exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


if __name__ == "__main__":
    print(json.dumps([_in_fork(job) for job in json.loads(sys.argv[1])]))
