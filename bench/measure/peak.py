# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a step in a fresh process: what the resident set grows to.

So it counts what compiled code allocates, and the gradients that are returned.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pycl

from .correctness import Refusal

STATUS = Path("/proc/self/status")


class Failed(Refusal):
    """The process that measures ended without a result."""


def in_fresh_process(module: str, job: dict[str, Any], what: str) -> dict[str, float]:
    """What ``python -m module JOB`` prints last, which is JSON; raises ``Failed`` that names ``what``."""
    # the pycl that is imported here, wherever the process is started
    here = {"PYTHONPATH": os.pathsep.join([str(Path(pycl.__file__).parent.parent), *filter(None, sys.path)])}
    command = [sys.executable, "-m", module, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | here)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Failed(f"{what} failed: {reason}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth(step: Callable[[], Any]) -> dict[str, float]:
    """``peak_mib`` above what there is before, and ``seconds``, of one step; right only in a fresh process."""
    before = _restart_high_water_mib()
    start = time.perf_counter()
    step()
    return {"seconds": time.perf_counter() - start, "peak_mib": _high_water_mib() - before}


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
