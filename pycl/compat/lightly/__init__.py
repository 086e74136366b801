# SPDX-License-Identifier: Apache-2.0
"""lightly's contrastive losses: ``from pycl.compat.lightly import NTXentLoss`` instead of ``from lightly.loss``.

Fused are ``NTXentLoss``, ``DCLLoss``, ``DCLWLoss``, ``SwaVLoss`` and the function ``sinkhorn`` of
``lightly.loss.swav_loss``. Every other name of ``lightly.loss`` is lightly's own, where lightly is installed.
"""

from __future__ import annotations

from pycl.compat._peer import forward_names
from pycl.compat.lightly._dcl import DCLLoss, DCLWLoss, negative_mises_fisher_weights
from pycl.compat.lightly._nt_xent import NTXentLoss
from pycl.compat.lightly._swav import SwaVLoss, sinkhorn

__all__ = ["DCLLoss", "DCLWLoss", "NTXentLoss", "SwaVLoss", "negative_mises_fisher_weights", "sinkhorn"]
__getattr__, __dir__ = forward_names(__name__, "lightly.loss", "lightly")
