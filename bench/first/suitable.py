# SPDX-License-Identifier: Apache-2.0
"""Whether this Python can make what a GPU machine takes: Triton's keys are hashes of its own files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sys
from typing import NamedTuple


class Machine(NamedTuple):
    """The GPU machine's software, as far as what is carried depends on it."""

    python: str = "3.12"
    torch: str = "2.11.0"
    triton: str = "3.6.0"


MACHINE = Machine()
ARCHITECTURE = 90
# distributions: to look for the module pip makes setuptools leave distutils alone, and torch.compile then fails
NEEDED = ("pip", "scikit-build-core", "pybind11", "pytest", "hypothesis")


def why_not() -> str | None:
    """What is wrong with this Python, all in one line."""
    here = ".".join(map(str, sys.version_info[:2]))
    found = [] if here == MACHINE.python else [f"it is CPython {here}, wanted {MACHINE.python}"]
    for name in ("torch", "triton"):
        wanted, has = getattr(MACHINE, name), _version(name)
        if has is None:
            found.append(f"{name} is missing, wanted {wanted}")
        elif has.split("+")[0] != wanted:
            found.append(f"{name} is {has}, wanted {wanted}")
    found += [f"{name} is missing" for name in NEEDED if _version(name) is None]
    if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")):
        found.append("there is no C compiler (cc or $CC)")
    if not found:
        return None
    return f"{sys.executable} cannot compile for the GPU machine: {'; '.join(found)} (GPU_CACHE_PYTHON names another)"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def remarks() -> list[str]:
    """What will be missing from what is carried, and what runs without it."""
    if nvcc() is None:
        return ["no nvcc (PATH, $CUDACXX): libpycl_cuda.so is not carried; Sinkhorn in CUDA is left out, the rest runs"]
    return []


def nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def key_of_triton() -> str:
    """Entries of a cache are found where this is the same."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()[:12]
