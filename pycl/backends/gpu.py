# SPDX-License-Identifier: Apache-2.0
"""Which GPUs pycl's kernels are for."""

from __future__ import annotations

import torch

OLDEST = (8, 0)  # compute capability: the first with bfloat16 and asynchronous copies


def why_not() -> str | None:
    """The reason why the kernels cannot run here, as a phrase, or ``None`` where nothing speaks against it."""
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA GPUs, this PyTorch is built for ROCm"
    for index in range(torch.cuda.device_count()):
        if (capability := torch.cuda.get_device_capability(index)) < OLDEST:
            name = torch.cuda.get_device_name(index)
            return f"it needs compute capability {dotted(OLDEST)} or higher, {name} has {dotted(capability)}"
    return None


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
