# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel on this machine's processor: see ``cuda_on_cpu/``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.backends.cuda_library import CudaLibrary, PyclDevice, PyclSinkhornPlan, described, outputs_of
from pycl.core.problem import SinkhornProblem

SOURCE = Path(__file__).parent.parent / "cuda_on_cpu" / "sinkhorn.cpp"
FLAGS = (
    "-std=c++17",
    "-O1",
    "-U_FORTIFY_SOURCE",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
)
FORWARD, BACKWARD, SHUFFLED, BLOCK_BY_BLOCK = range(4)  # orders in which fibers get their turn
GUARD = 64


def build(folder: Path) -> CudaLibrary:
    compiler = shutil.which("g++") or pytest.skip("there is no g++")
    path = folder / "sinkhorn_on_cpu.so"
    done = subprocess.run([compiler, *FLAGS, SOURCE, "-o", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return CudaLibrary(str(path))


def device(
    processors: int = 4, shared_bytes: int = 232448, clusters: tuple[int, int, int] = (0, 0, 0), threads: int = 64
) -> PyclDevice:
    """A small one. Without processors it has clusters alone, so that a plan has no other choice."""
    return PyclDevice(2048, processors, shared_bytes, clusters, threads)


H200 = PyclDevice(50 << 20, 132, 232448, (66, 32, 16), 512)
A100 = PyclDevice(40 << 20, 108, 166912, (0, 0, 0), 512)


def place_of(plan: PyclSinkhornPlan) -> str:
    return "resident" if plan.resident else "streamed" if plan.slots else "global"


def plan_of(library: CudaLibrary, t: SinkhornProblem, where: PyclDevice) -> PyclSinkhornPlan:
    return library.plan(described(t, *outputs_of(t)), where)


def plan_at(
    library: CudaLibrary, t: SinkhornProblem, place: str, cluster: int = 1, threads: int = 64
) -> PyclSinkhornPlan:
    """A plan on a device with so little shared memory that it keeps its tiles at the place."""
    teams = 3
    clusters = tuple(teams * (size == cluster) for size in (2, 4, 8))
    for shared_bytes in range(1 << 16, 0, -128):
        where = device(teams * (cluster == 1), shared_bytes, clusters, threads)
        plan = plan_of(library, t, where)
        several_tiles = plan.tile_rows * 2 < len(t.scores) // teams
        if place_of(plan) == place and (place == "resident" or several_tiles):
            return plan
    raise AssertionError(f"no shared memory leads to {place}")


def solve(
    library: CudaLibrary, t: SinkhornProblem, plan: PyclSinkhornPlan, order: int = FORWARD
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, u and v, written between guards, from a workspace that holds NaN."""
    guarded = [torch.full((out.numel() + 2 * GUARD,), -7.0, dtype=out.dtype) for out in outputs_of(t)]
    codes, u, v = (buffer[GUARD:-GUARD].fill_(torch.nan) for buffer in guarded)
    workspace = torch.full((plan.workspace_bytes + 2 * GUARD,), 255, dtype=torch.uint8)
    workspace[:GUARD] = workspace[-GUARD:] = 7
    codes = codes.view(t.scores.shape)
    library.run(0, described(t, codes, u, v), plan, workspace[GUARD:-GUARD], order)
    for buffer in guarded:
        assert (torch.cat([buffer[:GUARD], buffer[-GUARD:]]) == -7).all(), "written beyond an output"
    assert (torch.cat([workspace[:GUARD], workspace[-GUARD:]]) == 7).all(), "written beyond the workspace"
    return codes, u, v


def fields(plan: PyclSinkhornPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name, _ in PyclSinkhornPlan._fields_}
