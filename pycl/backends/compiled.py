# SPDX-License-Identifier: Apache-2.0
"""Find the compiled parts, the module ``pycl._C`` and libraries, or say why there is none."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DISTRIBUTION = "pycl-kernels"


def extension() -> ModuleType:
    """The compiled module; raises ``ImportError`` with the way to get it where it is missing."""
    try:
        return importlib.import_module("pycl._C")
    except ModuleNotFoundError:
        path = _installed_path("_C", tuple(importlib.machinery.EXTENSION_SUFFIXES))
    if path is None:
        how = "run `pip install .` in the repository, which takes a C++ compiler"
        raise ImportError(f"pycl's compiled part (pycl._C) is not built: {how}")
    spec = importlib.util.spec_from_file_location("pycl._C", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"pycl's compiled part cannot be loaded from {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pycl._C"] = module
    spec.loader.exec_module(module)
    return module


def library(name: str) -> str:
    """The path of a shared library of pycl's; raises ``ImportError`` where it was not built."""
    beside = Path(__file__).parent.parent / name
    path = str(beside) if beside.exists() else _installed_path(name)
    if path is None:
        raise ImportError(f"{name} was not built")
    return path


def _installed_path(start: str, ends: tuple[str, ...] = ("",)) -> str | None:
    """Where the installed distribution keeps a file: running in the source tree imports the sources without it."""
    try:
        files = importlib.metadata.distribution(DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [file for file in files if file.name.startswith(start) and file.name.endswith(ends)]
    return str(found[0].locate()) if found else None
