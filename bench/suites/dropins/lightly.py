# SPDX-License-Identifier: Apache-2.0
"""Rows of lightly."""

from __future__ import annotations

from typing import Any

from ...workloads.workload import Function
from .row import DropIn, Make


def _row(name: str, make: Make, views: int = 2, module: str = "lightly.loss") -> DropIn:
    return DropIn(f"lightly {name}", "lightly", module, "lightly", make, views)


def _masked(module: Any) -> Function:
    """MSN of N anchors, two views of N / 2 targets, and N prototypes."""
    loss = module.MSNLoss()
    return lambda anchors, prototypes: loss(anchors, anchors[: len(anchors) // 2].detach(), prototypes)


ROWS = (
    _row("NTXentLoss", lambda m: m.NTXentLoss()),
    _row("DCLLoss", lambda m: m.DCLLoss()),
    _row("DCLWLoss", lambda m: m.DCLWLoss()),
    _row("DirectCLRLoss", lambda m: m.DirectCLRLoss()),
    _row("MACLLoss", lambda m: m.MACLLoss()),
    _row("HypersphereLoss", lambda m: m.HypersphereLoss(), module="lightly.loss.hypersphere_loss"),
    _row("KoLeoLoss", lambda m: m.KoLeoLoss(), views=1),
    _row("MSNLoss", _masked),
)
