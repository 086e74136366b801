# SPDX-License-Identifier: Apache-2.0
"""Find the compiled module ``pycl._C``, or say why there is none."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from types import ModuleType

DISTRIBUTION = "pycl-kernels"


def extension() -> ModuleType:
    """The compiled module; raises ``ImportError`` with the way to get it where it is missing."""
    try:
        return importlib.import_module("pycl._C")
    except ModuleNotFoundError:
        path = _installed_path()
    if path is None:
        raise ImportError("pycl's compiled part (pycl._C) is not built: run `pip install .` in the repository")
    spec = importlib.util.spec_from_file_location("pycl._C", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"pycl's compiled part cannot be loaded from {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pycl._C"] = module
    spec.loader.exec_module(module)
    return module


def _installed_path() -> str | None:
    """Where the installed distribution keeps ``_C``: running in the source tree imports the sources without it."""
    try:
        files = importlib.metadata.distribution(DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    found = [file for file in files if file.name.startswith("_C") and file.name.endswith(suffixes)]
    return str(found[0].locate()) if found else None
