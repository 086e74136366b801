# SPDX-License-Identifier: Apache-2.0
"""What the rows share: inputs from views and labels, and what their losses have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pycl.testing.formulas import unit


def pair(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return views[0], views[1]


def unit_pair(views: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return unit(views[0]), unit(views[1])


SYMMETRIC = frozenset({"rotation", "instances", "views", "views_of_each"})
PAIRED = frozenset({"rotation", "instances"})
TWO = (2, 2)
FEATURES: dict[str, Any] = {  # without a temperature, and sensitive to the length of a feature or to equal points
    "scalars": {},
    "steepness": lambda scalars: 1.0,
    "n_views": TWO,
    "cosine": False,
}
