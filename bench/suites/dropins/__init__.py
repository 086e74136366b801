# SPDX-License-Identifier: Apache-2.0
"""The drop-ins that are measured, each with the library whose loss it stands for: a file for each library."""

from __future__ import annotations

from . import grad_cache, lightly, open_clip, pml, sentence_transformers
from .row import DropIn

DIMS, SIZES = (128, 512), (128, 512, 2048)
INFO_NCE = DropIn("info-nce-pytorch InfoNCE", "info-nce-pytorch", "info_nce", "info_nce", lambda m: m.InfoNCE())
DROPINS = (*lightly.ROWS, *open_clip.ROWS, *pml.ROWS, INFO_NCE, *sentence_transformers.ROWS, *grad_cache.ROWS)

__all__ = ["DIMS", "DROPINS", "SIZES", "DropIn"]
