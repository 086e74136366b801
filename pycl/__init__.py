# SPDX-License-Identifier: Apache-2.0
"""pycl: exact contrastive losses that never store the similarity matrix."""

from __future__ import annotations

from pathlib import Path

if not (Path(__file__).parent / "triton_kernels").exists():
    # Running in a checkout: pycl.bench and pycl.triton_kernels are its top-level folders.
    __path__.append(str(Path(__file__).parent.parent))

from . import clustering, distributed, engine, functional, metrics, modules
from .backends import BackendUnavailable
from .cached import cached_step
from .clustering import *
from .distributed import instances, together
from .engine import PairStats, pair_average, pair_cross_entropy, pair_stats, pair_sum
from .matrix import pair_logits, pair_top
from .modules import *
from .pairs import Pairs, Points, stack_views
from .reduction import by_view, reduce

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
    "pair_average",
    "pair_cross_entropy",
    "pair_logits",
    "pair_stats",
    "pair_sum",
    "pair_top",
    "reduce",
    "stack_views",
    "together",
    *clustering.__all__,
    *modules.__all__,
]


def __getattr__(name: str) -> object:
    if hasattr(functional, name):
        raise AttributeError(f"module 'pycl' has no attribute {name!r}; the function is pycl.functional.{name}")
    if name in ("losses", "nn"):
        raise AttributeError(f"module 'pycl' has no attribute {name!r}; losses are in pycl and in pycl.functional")
    raise AttributeError(f"module 'pycl' has no attribute {name!r}")
