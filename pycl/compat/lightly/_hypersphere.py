# SPDX-License-Identifier: Apache-2.0
"""lightly's ``HypersphereLoss`` of ``lightly.loss.hypersphere_loss``."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from pycl.compat._common import as_input
from pycl.compat._peer import fall_back, find_peer
from pycl.compat.lightly import _alone
from pycl.distributed.ranks import LOCAL
from pycl.functional import uniformity
from pycl.functional._common import unit

peer: Any = find_peer("lightly.loss.hypersphere_loss") or _alone  # which lightly.loss does not import


class HypersphereLoss(peer.HypersphereLoss):
    r"""lightly's ``HypersphereLoss``: alignment of the pairs and uniformity of each view.

    With x and y the unit vectors of the two views::

        loss = mean_i |x_i - y_i|^alpha  +  lam / 2 * ( log mean_{i<j} exp(-t |x_i - x_j|^2)
                                                      + log mean_{i<j} exp(-t |y_i - y_j|^2) )

    No distance is stored (:func:`pycl.functional.uniformity`). One instance has no pair and a uniformity of 0, where
    lightly returns NaN. A ``t`` that is not positive runs lightly's code. Sums are in float32 for half inputs, which
    lightly does not take, and the loss has their dtype.

    Shape:
        ``z_a`` and ``z_b`` [N, d]; a scalar.

    Raises:
        ValueError: inputs that are not [N, d] with N, d >= 1.
    """

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        if why := self._pycl_why_not():
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().forward(z_a, z_b))
        spread = sum(uniformity(z, t=self.t, normalize=True, group=LOCAL) for z in (z_a, z_b))
        aligned = (unit(z_a) - unit(z_b)).norm(dim=1).pow(self.alpha).mean()
        return as_input(aligned + self.lam * spread / 2, z_a, "input")

    def _pycl_why_not(self) -> str:
        """Why this loss runs lightly's code whatever it is given, or nothing."""
        return "" if self.t > 0 else "a t that is not positive"
