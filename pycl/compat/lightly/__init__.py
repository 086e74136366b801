# SPDX-License-Identifier: Apache-2.0
"""lightly's contrastive losses: ``from pycl.compat.lightly import NTXentLoss`` instead of ``from lightly.loss``.

Fused are ``NTXentLoss``, ``DirectCLRLoss``, ``DCLLoss``, ``DCLWLoss``, ``MACLLoss``, ``KoLeoLoss``, ``SwaVLoss``, the
``HypersphereLoss`` of ``lightly.loss.hypersphere_loss``, the function ``sinkhorn`` of ``lightly.loss.swav_loss`` and,
where lightly is installed, ``MSNLoss``, ``PMSNLoss`` and ``PMSNCustomLoss``. Every other name of ``lightly.loss`` is
lightly's own. ``NegativeCosineSimilarity`` among them compares no pairs but the positive ones: there is no matrix to
avoid.
"""

from __future__ import annotations

from pycl.compat._peer import find_peer, forward_names
from pycl.compat.lightly._dcl import DCLLoss, DCLWLoss, negative_mises_fisher_weights
from pycl.compat.lightly._hypersphere import HypersphereLoss
from pycl.compat.lightly._koleo import KoLeoLoss
from pycl.compat.lightly._macl import MACLLoss
from pycl.compat.lightly._nt_xent import DirectCLRLoss, NTXentLoss
from pycl.compat.lightly._swav import SwaVLoss, sinkhorn

__all__ = [
    "DCLLoss",
    "DCLWLoss",
    "DirectCLRLoss",
    "HypersphereLoss",
    "KoLeoLoss",
    "MACLLoss",
    "NTXentLoss",
    "SwaVLoss",
    "negative_mises_fisher_weights",
    "sinkhorn",
]

if find_peer("lightly.loss"):
    from pycl.compat.lightly._msn import MSNLoss, PMSNCustomLoss, PMSNLoss

    __all__ += ["MSNLoss", "PMSNCustomLoss", "PMSNLoss"]

__getattr__, __dir__ = forward_names(__name__, "lightly.loss", "lightly")
