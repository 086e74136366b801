# SPDX-License-Identifier: Apache-2.0
"""Distances and reducers of pytorch-metric-learning: which are the library's own, as it made them."""

from __future__ import annotations

from functools import cache
from typing import Any

from pycl.compat._plain import is_plain

COSINES = ("CosineSimilarity", "DotProductSimilarity")


def kind_of(part: Any) -> str:
    """The name of the class of a distance or reducer; nothing for a subclass, or where a method or hook was added."""
    kind: Any = type(part)
    names = _names(kind)
    return str(kind.__name__) if names and names.isdisjoint(vars(part)) and is_plain(part, kind) else ""


@cache
def _names(kind: type) -> frozenset[str]:
    """What a class of the library has under its names; nothing for another class."""
    return frozenset(dir(kind)) if is_theirs(kind) else frozenset()


def is_theirs(thing: Any) -> bool:
    """Whether a class or function is one of the library."""
    return getattr(thing, "__module__", "").startswith("pytorch_metric_learning.")
