# SPDX-License-Identifier: Apache-2.0
"""pytorch-metric-learning's losses: ``from pycl.compat.pml import losses`` for its own ``losses``.

Its other modules (``miners``, ``distances``, ``reducers``, ...) come from here, too, as they are there. Stands for
pytorch-metric-learning 2; importing it beside another version raises ImportError.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from pycl.compat._peer import find_peer

from ._version import check_version

check_version()

from . import losses  # noqa: E402  # its classes derive from the library's

__all__ = ["losses"]
_PML = find_peer("pytorch_metric_learning")
_MODULES = [] if _PML is None else [m.name for m in pkgutil.iter_modules(_PML.__path__) if m.name != "losses"]


def __getattr__(name: str) -> ModuleType | Any:
    if name in _MODULES:
        return importlib.import_module(f"pytorch_metric_learning.{name}")
    if _PML is not None and not name.startswith("_") and hasattr(_PML, name):
        return getattr(_PML, name)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}, nor is there one of an installed pytorch-metric-learning"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
