# SPDX-License-Identifier: Apache-2.0
"""Whether Triton kernels can run here, and if not, why. Imports no Triton."""

from __future__ import annotations

import importlib.metadata

import torch

MINIMUM = (3, 5)
OLDEST = (8, 0)  # compute capability: the first with bfloat16 and asynchronous copies


def why_not() -> str | None:
    """The reason why the Triton backend cannot run, as a phrase, or ``None`` where it can."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed (pip install 'triton>=3.5'; PyTorch's CUDA wheels bring it)"
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        return f"Triton {version} is older than {_dotted(MINIMUM)}"
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA GPUs, this PyTorch is built for ROCm"
    for index in range(torch.cuda.device_count()):
        if (capability := torch.cuda.get_device_capability(index)) < OLDEST:
            name = torch.cuda.get_device_name(index)
            return f"it needs compute capability {_dotted(OLDEST)} or higher, {name} has {_dotted(capability)}"
    return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
