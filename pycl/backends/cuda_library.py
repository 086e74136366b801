# SPDX-License-Identifier: Apache-2.0
"""``libpycl_cuda.so`` through ctypes: the structures of ``csrc/cuda/sinkhorn.h`` and the calls that fill them."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from pycl.core.problem import SinkhornProblem, accumulation_dtype

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class PyclSinkhorn(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("scores", "sample_target", "prototype_target", "codes", "u", "v")),
        *((name, c_int64) for name in ("n_samples", "n_prototypes", "row_stride")),
        ("epsilon", c_double),
        *((name, c_int32) for name in ("iterations", "dtype", "codes_dtype")),
    )


class PyclDevice(ctypes.Structure):
    _fields_ = (
        ("l2_bytes", c_int64),
        *((name, c_int32) for name in ("processors", "shared_bytes")),
        ("clusters", c_int32 * 3),
        ("threads", c_int32),
    )


class PyclSinkhornPlan(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("shared_bytes", "workspace_bytes")),
        *((name, c_int32) for name in ("cluster", "teams", "threads", "slice", "vector", "tile_rows", "slots")),
        *((name, c_int32) for name in ("resident", "row_capacity", "lanes", "parts", "groups", "copy_bytes")),
    )


class CudaLibrary:
    """The functions of a library, as methods that raise RuntimeError with the library's message."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._functions = ctypes.CDLL(path)
        self._functions.pycl_cuda_message.restype = ctypes.c_char_p
        self._functions.pycl_sinkhorn_run.argtypes = (ctypes.c_int, c_void_p, c_void_p, c_void_p, c_void_p)

    def check(self) -> None:
        """Raises where the driver is too old; touches no device, and asks nothing of a machine without a driver."""
        self._check(self._functions.pycl_cuda_check())

    def device(self, ordinal: int) -> PyclDevice:
        """What plans depend on; it takes the driver long enough to ask once."""
        device = PyclDevice()
        self._check(self._functions.pycl_cuda_device(ordinal, ctypes.byref(device)))
        return device

    def plan(self, problem: PyclSinkhorn, device: PyclDevice) -> PyclSinkhornPlan:
        plan = PyclSinkhornPlan()
        self._check(self._functions.pycl_sinkhorn_plan(*map(ctypes.byref, (problem, device, plan))))
        return plan

    def run(self, ordinal: int, problem: PyclSinkhorn, plan: PyclSinkhornPlan, workspace: Tensor, stream: int) -> None:
        """Launches, and waits for nothing."""
        pointers = ctypes.byref(problem), ctypes.byref(plan), workspace.data_ptr(), stream
        self._check(self._functions.pycl_sinkhorn_run(ordinal, *pointers))

    def _check(self, code: int) -> None:
        if code != 0:
            message = self._functions.pycl_cuda_message(code).decode()
            raise RuntimeError(f"backend='cuda': Sinkhorn's kernel failed with code {code}: {message}")


def outputs_of(t: SinkhornProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for codes, u and v."""
    new, dtype = t.scores.new_empty, accumulation_dtype(t.scores.dtype)
    n_samples, n_prototypes = t.scores.shape
    return t.new_codes(), new(n_samples, dtype=dtype), new(n_prototypes, dtype=dtype)


def described(t: SinkhornProblem, codes: Tensor, u: Tensor, v: Tensor) -> PyclSinkhorn:
    targets = None if t.sample_target is None else t.sample_target.data_ptr(), t.prototype_target.data_ptr()
    return PyclSinkhorn(
        *(t.scores.data_ptr(), *targets, codes.data_ptr(), u.data_ptr(), v.data_ptr()),
        *(*t.scores.shape, t.scores.stride(0)),
        *(t.epsilon, t.iterations, DTYPES[t.scores.dtype], DTYPES[t.dtype]),
    )
