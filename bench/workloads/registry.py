# SPDX-License-Identifier: Apache-2.0
"""Every workload by the name that cases and records have."""

from __future__ import annotations

from .losses import LOSS_WORKLOADS
from .modifiers import MODIFIER_WORKLOADS
from .objectives import OBJECTIVE_WORKLOADS
from .sinkhorn import SINKHORN_WORKLOADS
from .workload import Workload

WORKLOADS: dict[str, Workload] = LOSS_WORKLOADS | SINKHORN_WORKLOADS | MODIFIER_WORKLOADS | OBJECTIVE_WORKLOADS
FORMS = ("eager", *dict.fromkeys(name for workload in WORKLOADS.values() for name in workload.others))
