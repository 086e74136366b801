# SPDX-License-Identifier: Apache-2.0
"""Rows of open_clip."""

from __future__ import annotations

from .row import DropIn, scaled

ROWS = (
    DropIn("open_clip ClipLoss", "open_clip_torch", "open_clip.loss", "open_clip", scaled(lambda m: m.ClipLoss())),
    DropIn("open_clip SigLipLoss", "open_clip_torch", "open_clip.loss", "open_clip", scaled(lambda m: m.SigLipLoss())),
)
