# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one step of a case above its inputs, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ..suites.case import Case
from ..workloads import baselines
from ..workloads.registry import WORKLOADS
from ..workloads.workload import Function, step_of
from .peak import Failed, growth, in_fresh_process

__all__ = ["EAGER_SIZE", "Failed", "measure", "peak", "peak_here"]

WARM_UP = 64  # rows; loads the code and starts the threads before anything is measured
EAGER_SIZE = 4096  # dense memory is measured up to this size and grows with the matrix from there


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
    return in_fresh_process("pycl.bench.measure.memory", job_of(case, provider), f"the step of {provider}")


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
    return growth(step_of(function, workload.inputs(size, *shape)))


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


if __name__ == "__main__":
    print(json.dumps(peak_here(json.loads(sys.argv[1]))))
