# SPDX-License-Identifier: Apache-2.0
"""The library a drop-in stands for: its classes where it is installed, and the way back to its own code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from types import ModuleType

_warned: set[tuple[str, str]] = set()


class FallbackWarning(UserWarning):
    """A drop-in ran the library's own code, because pycl has no fused form of what was asked for."""


def find_peer(module: str) -> ModuleType | None:
    """The module of the library, or None where it is not installed; one that fails to import counts as absent."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    try:
        return importlib.import_module(module)
    except Exception as error:  # a foreign package may fail in any way
        warn_once(module, f"{module} is installed but does not import ({error}); pycl's losses stand alone")
        return None


def fall_back(loss: str, why: str) -> None:
    """Say once that ``loss`` runs the library's own code and why; with ``PYCL_STRICT=1`` raise RuntimeError."""
    message = f"{loss} runs the library's own code: {why}"
    if os.environ.get("PYCL_STRICT") == "1":
        raise RuntimeError(f"{message} (an error because PYCL_STRICT=1)")
    warn_once(loss, message)


def warn_once(topic: str, message: str) -> None:
    """A ``FallbackWarning`` that does not come back at every step."""
    if (topic, message) not in _warned:
        _warned.add((topic, message))
        warnings.warn(message, FallbackWarning, stacklevel=4)
