# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one step of a drop-in, or of its library, in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import torch

from ..suites.dropins import DROPINS, DropIn
from ..workloads.baselines import declare_torchvision
from ..workloads.workload import step_of
from .peak import growth, in_fresh_process

WARM_UP = 8  # rows; loads the code and starts the threads before anything is measured


def peak(dropin: DropIn, dim: int, size: int, side: str) -> float:
    """MiB of one step of ``"ours"`` or the ``"peer"`` above its inputs, gradients included; raises ``Failed``."""
    job = {"name": dropin.name, "dim": dim, "size": size, "side": side, "threads": torch.get_num_threads()}
    return in_fresh_process(__name__, job, f"the step of {dropin.name} ({side})")["peak_mib"]


def inputs_of(dropin: DropIn, dim: int, size: int) -> list[torch.Tensor]:
    """What the loss is called with."""
    generator = torch.Generator().manual_seed(0)
    rows = [size] * dropin.views + [dropin.classes] * (dropin.classes > 0)
    return [torch.randn(n, dim, generator=generator).requires_grad_() for n in rows]


def module_of(dropin: DropIn, side: str) -> Any:
    """The module that has the class: pycl's or the library's."""
    return importlib.import_module(f"pycl.compat.{dropin.ours}" if side == "ours" else dropin.peer)


def peak_here(job: dict[str, Any]) -> dict[str, float]:
    """``peak_mib`` and ``seconds`` of one step, right only in a fresh process."""
    os.environ["PYCL_WORKSPACE"] = "0"  # what is needed, not what is kept to save time
    torch.set_num_threads(job["threads"])
    declare_torchvision()
    dropin = next(row for row in DROPINS if row.name == job["name"])
    loss = dropin.make(module_of(dropin, job["side"]))
    step_of(loss, inputs_of(dropin, job["dim"], WARM_UP))()
    return growth(step_of(loss, inputs_of(dropin, job["dim"], job["size"])))


if __name__ == "__main__":
    print(json.dumps(peak_here(json.loads(sys.argv[1]))))
