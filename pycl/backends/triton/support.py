# SPDX-License-Identifier: Apache-2.0
"""Whether Triton kernels can run here, and if not, why. Imports no Triton."""

from __future__ import annotations

import importlib.metadata

from pycl.backends import gpu

MINIMUM = (3, 5)


def why_not() -> str | None:
    """The reason why the Triton backend cannot run, as a phrase, or ``None`` where it can."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed (pip install 'triton>=3.5'; PyTorch's CUDA wheels bring it)"
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        return f"Triton {version} is older than {gpu.dotted(MINIMUM)}"
    return gpu.why_not()
