# SPDX-License-Identifier: Apache-2.0
"""GradCache under both of its names: PyPI's ``gradcache`` imports itself as ``grad_cache``, its repository's name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest


def declare_grad_cache() -> None:
    """Before the drop-in is imported: it then finds the class, too."""
    if importlib.util.find_spec("gradcache"):
        sys.modules["grad_cache"] = importlib.import_module("gradcache")


def grad_cache(module: str) -> ModuleType:
    """A module of the library; the test is skipped where it is not installed."""
    pytest.importorskip("gradcache")
    return importlib.import_module(f"grad_cache.{module}")
