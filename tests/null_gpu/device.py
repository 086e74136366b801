# SPDX-License-Identifier: Apache-2.0
"""An H100 that is not there: Triton binds, specialises, compiles and launches for it, and the null driver takes it.

Tensors are on the CPU, or on the meta device where nobody reads them and torch's own operations shall cost nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import library

NAME = "null GPU"
CAPABILITY = (9, 0)
PROPERTIES = SimpleNamespace(name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=80 << 30)


def use(folder: Path = library.FOLDER) -> library.Library:
    """From here on, in a process that has not imported pycl; raises ``RuntimeError`` where something is missing."""
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise RuntimeError("the null GPU compiles kernels: unset TRITON_INTERPRET")
    if "pycl" in sys.modules:
        raise RuntimeError("the null GPU must be there before pycl is imported")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch's own CUDA would take the null driver for a broken one
    driver = library.load(folder)
    _be_triton_s_device()
    replace(torch.cuda, "get_device_capability", lambda device=None: CAPABILITY)
    replace(torch.cuda, "get_device_properties", lambda device=None: PROPERTIES)
    _let_tensors_in()
    return driver


def _be_triton_s_device() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils
    from triton.runtime import driver

    class NullDriver(CudaDriver):  # type: ignore[misc]  # Triton's class has no types
        def __init__(self) -> None:  # not the base's, which asks torch for a GPU
            self.utils = CudaUtils()
            self.launcher_cls = CudaLauncher
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda device: 0
            self.set_current_device = lambda device: None
            self.get_device_capability = lambda device=0: CAPABILITY

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    driver.set_active(NullDriver())


def _let_tensors_in() -> None:
    os.environ["PYCL_BACKEND"] = "triton"
    register = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: None  # operators on meta tensors then run, too
    try:
        from pycl.backends.triton import backend as triton
    finally:
        torch.library.register_fake = register
    from pycl.backends.triton import gradients

    replace(triton, "DEVICES", ("cpu", "meta", "cuda"))
    # a product of halves with a float32 result exists on GPUs alone
    replace(gradients, "_product", _product)
    # would find that nothing was computed
    replace(sys.modules["pycl.functional.sinkhorn"], "check_finite", lambda *_, **__: None)


def _product(a: torch.Tensor, b: torch.Tensor, into: torch.Tensor | None = None, add: bool = False) -> torch.Tensor:
    return torch.empty(a.shape[0], b.shape[1], device=a.device) if into is None else into


def replace(owner: Any, name: str, value: Any) -> None:
    getattr(owner, name)  # an AttributeError says that it has moved
    setattr(owner, name, value)
