# SPDX-License-Identifier: Apache-2.0
"""Whether Triton kernels can run here, and if not, why."""

from __future__ import annotations

import importlib.metadata

MINIMUM = (3, 5)


def why_not() -> str:
    """The reason why the Triton backend cannot run, as a phrase."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed"
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        return f"Triton {version} is older than {'.'.join(map(str, MINIMUM))}"
    return "this release has no Triton kernels yet"
