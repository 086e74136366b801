# SPDX-License-Identifier: Apache-2.0
"""Rows of GradCache."""

from __future__ import annotations

from typing import Any

from ...workloads.workload import Function
from .row import DropIn, unit


def _simple(module: Any) -> Function:
    """Unit vectors, the queries over a temperature of 0.05: the loss takes products as they are."""
    loss = module.SimpleContrastiveLoss()
    return lambda queries, passages: loss(20 * unit(queries), unit(passages))


ROWS = (DropIn("GradCache SimpleContrastiveLoss", "gradcache", "gradcache.loss", "grad_cache.loss", _simple),)
