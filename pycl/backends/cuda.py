# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend: Sinkhorn on stored scores, all iterations in one launch."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pycl.backends import gpu
from pycl.backends.compiled import library
from pycl.backends.cuda_library import DTYPES as DTYPES
from pycl.backends.cuda_library import CudaLibrary, PyclDevice, described, outputs_of
from pycl.backends.registry import BackendUnavailable
from pycl.core.problem import SinkhornProblem

DEVICES = ("cuda",)

if reason := gpu.why_not():
    raise BackendUnavailable(f"backend='cuda' is not available: {reason}")

try:
    LIBRARY = CudaLibrary(library("libpycl_cuda.so"))
    LIBRARY.check()
except (ImportError, OSError, RuntimeError) as error:
    raise BackendUnavailable(
        f"backend='cuda' is not available: {error}; `PYCL_CUDA=ON pip install .` in the repository builds it, with the "
        "nvcc of a CUDA that the driver knows on the PATH"
    ) from error


def sinkhorn(t: SinkhornProblem) -> tuple[Tensor, Tensor, Tensor]:
    codes, u, v = outputs_of(t)
    ordinal = t.scores.device.index
    with torch.cuda.device(ordinal):  # the library makes it the driver's device, too
        problem = described(t, codes, u, v)
        plan = LIBRARY.plan(problem, _device(ordinal))
        workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=t.scores.device)
        LIBRARY.run(ordinal, problem, plan, workspace, torch.cuda.current_stream().cuda_stream)
    return codes, u, v


@functools.cache
def _device(ordinal: int) -> PyclDevice:
    return LIBRARY.device(ordinal)
