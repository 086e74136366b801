# SPDX-License-Identifier: Apache-2.0
"""lightly's contrastive losses: ``from pycl.compat.lightly import NTXentLoss`` instead of ``from lightly.loss``.

Fused are ``NTXentLoss``, ``DCLLoss``, ``DCLWLoss``, ``SwaVLoss`` and the function ``sinkhorn`` of
``lightly.loss.swav_loss``. Every other name of ``lightly.loss`` is lightly's own, where lightly is installed: none of
those losses compares all pairs.
"""

from __future__ import annotations

from typing import Any

from pycl.compat._peer import find_peer
from pycl.compat.lightly._dcl import DCLLoss, DCLWLoss, negative_mises_fisher_weights
from pycl.compat.lightly._nt_xent import NTXentLoss
from pycl.compat.lightly._swav import SwaVLoss, sinkhorn

__all__ = ["DCLLoss", "DCLWLoss", "NTXentLoss", "SwaVLoss", "negative_mises_fisher_weights", "sinkhorn"]


def __getattr__(name: str) -> Any:
    library = find_peer("lightly.loss") if not name.startswith("_") else None
    if library is None or not hasattr(library, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}, nor is there one of an installed lightly")
    return getattr(library, name)
