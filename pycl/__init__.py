# SPDX-License-Identifier: Apache-2.0
"""pycl: exact contrastive losses that need no similarity matrix."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pycl import clustering, distributed, engine, functional, metrics, modules
from pycl.backends.registry import BackendUnavailable
from pycl.backends.workspace import set_workspace
from pycl.distributed import instances, together
from pycl.engine import (
    Pairs,
    PairStats,
    Points,
    by_view,
    pair_average,
    pair_cross_entropy,
    pair_logits,
    pair_stats,
    pair_sum,
    pair_top,
    reduce,
    stack_views,
)
from pycl.grad_cache import cached_step
from pycl.modules import *

if TYPE_CHECKING:
    from pycl import objectives

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "PairStats",
    "Pairs",
    "Points",
    "by_view",
    "cached_step",
    "clustering",
    "distributed",
    "engine",
    "functional",
    "instances",
    "metrics",
    "objectives",
    "pair_average",
    "pair_cross_entropy",
    "pair_logits",
    "pair_stats",
    "pair_sum",
    "pair_top",
    "reduce",
    "set_workspace",
    "stack_views",
    "together",
    *modules.__all__,
]


def __getattr__(name: str) -> object:
    if name == "objectives":  # seldom used, and 3 of the 50 ms that `import pycl` would take
        return importlib.import_module("pycl.objectives")
    if hasattr(functional, name):
        raise AttributeError(f"module 'pycl' has no attribute {name!r}; the function is pycl.functional.{name}")
    if name in ("losses", "nn"):
        raise AttributeError(f"module 'pycl' has no attribute {name!r}; losses are in pycl and in pycl.functional")
    raise AttributeError(f"module 'pycl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "objectives"})
