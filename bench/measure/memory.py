# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one step above its inputs, in a fresh process.

That process is ``python -m pycl.bench.measure.memory JSON``.
It is what the resident set grows to, so it counts what compiled code allocates, and the gradients that are returned.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import pycl

from ..suites.case import Case
from ..workloads import baselines
from ..workloads.registry import WORKLOADS
from ..workloads.workload import Function, step_of
from .correctness import Refusal

STATUS = Path("/proc/self/status")
WARM_UP = 64  # rows; loads the code and starts the threads before anything is measured
EAGER_SIZE = 4096  # dense memory is measured up to this size and grows with the matrix from there


class Failed(Refusal):
    """The process that measures ended without a result."""


def measure(case: Case, baselines: Sequence[str]) -> dict[str, Any]:
    """``peak_mib`` and ``seconds`` by provider; the dense formula's peak is extrapolated where it would not fit."""
    ours = peak(case, "ours")
    record: dict[str, Any] = {"peak_mib": {"ours": ours["peak_mib"]}, "seconds": {"ours": ours["seconds"]}}
    record["matrix_mib"] = case.matrix_bytes / 2**20
    if "eager" in baselines:
        small = case.at(min(case.size, EAGER_SIZE))
        record["peak_mib"]["eager"] = peak(small, "eager")["peak_mib"] * case.matrix_bytes / small.matrix_bytes
        record["eager_measured_at"] = small.size
    return record


def peak(case: Case, provider: str) -> dict[str, float]:
    """MiB and seconds of one step of ``"ours"``, a dense form, ``"compile"`` or a peer; raises ``Failed``."""
    # the pycl that is imported here, wherever the process is started
    here = {"PYTHONPATH": os.pathsep.join([str(Path(pycl.__file__).parent.parent), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "pycl.bench.measure.memory", json.dumps(job_of(case, provider))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | here)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Failed(f"the step of {provider} failed: {reason}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def job_of(case: Case, provider: str) -> dict[str, Any]:
    """What ``peak_here`` takes in another process: plain values, the threads of this process among them."""
    return {
        "loss": case.loss,
        "provider": provider,
        "size": case.size,
        "dim": case.dim,
        "dtype": case.kind,
        "precision": case.precision,
        "threads": torch.get_num_threads(),
    }


def peak_here(job: dict[str, Any]) -> dict[str, float]:
    """``peak_mib`` and ``seconds`` of one step, right only in a fresh process."""
    os.environ["PYCL_WORKSPACE"] = "0"  # what is needed, not what is kept to save time; another build may not know it
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision(job["precision"])
    workload, size, shape = WORKLOADS[job["loss"]], job["size"], (job["dim"], getattr(torch, job["dtype"]))
    function = function_of(job["loss"], job["provider"])
    warm_up = size if job["provider"] == "compile" else min(size, WARM_UP)  # it compiles anew for another size
    step_of(function, workload.inputs(warm_up, *shape))()
    step = step_of(function, workload.inputs(size, *shape))
    before = _restart_high_water_mib()
    start = time.perf_counter()
    step()
    return {"seconds": time.perf_counter() - start, "peak_mib": _high_water_mib() - before}


def function_of(loss: str, provider: str) -> Function:
    """What a provider computes a loss with."""
    workload = WORKLOADS[loss]
    forms = {"ours": workload.ours, "eager": workload.dense, **workload.others}
    if provider in forms:
        return forms[provider]
    if provider == "compile":
        return torch.compile(workload.dense)
    (found,) = baselines.find(peer for peer in baselines.PEERS if (peer.loss, peer.name) == (loss, provider))
    if found.function is None:
        raise Failed(f"{provider}: {found.why_not}")
    return found.function


def _restart_high_water_mib() -> float:
    """Forget the highest resident size so far and return the size now."""
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # memory that the inputs' making left behind would serve the step unseen
    with suppress(OSError):  # where it is not allowed the result may only come out too large
        Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS") if STATUS.exists() else _high_water_mib()


def _high_water_mib() -> float:
    # not ru_maxrss on Linux: it starts at the size of the process that started this one
    if STATUS.exists():
        return _status_mib("VmHWM")
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _status_mib(field: str) -> float:
    return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) / 2**10


if __name__ == "__main__":
    print(json.dumps(peak_here(json.loads(sys.argv[1]))))
