# SPDX-License-Identifier: Apache-2.0
"""The suite "objectives", on a CPU: every objective in the form that is its default."""

from __future__ import annotations

from ..workloads.objectives import OBJECTIVE_WORKLOADS
from .case import Case

LARGE, SMALL, MEMORY = (8192, 128), (512, 128), (16384, 32)
OBJECTIVE_CASES = (
    *(Case(name, name, *LARGE) for name in OBJECTIVE_WORKLOADS),
    *(Case(f"{name}-512", name, *SMALL) for name in OBJECTIVE_WORKLOADS),
    *(Case(f"{name}-memory", name, *MEMORY, measure="memory") for name in OBJECTIVE_WORKLOADS),
)
