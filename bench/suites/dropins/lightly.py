# SPDX-License-Identifier: Apache-2.0
"""Rows of lightly."""

from __future__ import annotations

from .row import DropIn

ROWS = (
    DropIn("lightly NTXentLoss", "lightly", "lightly.loss", "lightly", lambda m: m.NTXentLoss()),
    DropIn("lightly DCLLoss", "lightly", "lightly.loss", "lightly", lambda m: m.DCLLoss()),
    DropIn("lightly DCLWLoss", "lightly", "lightly.loss", "lightly", lambda m: m.DCLWLoss()),
)
