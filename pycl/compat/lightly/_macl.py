# SPDX-License-Identifier: Apache-2.0
"""lightly's ``MACLLoss``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pycl.compat._common import as_input
from pycl.compat._peer import find_peer
from pycl.compat.lightly import _alone
from pycl.core.pairs import Pairs
from pycl.engine.reductions import pair_stats
from pycl.engine.views import stack_views
from pycl.functional._common import as_scalar, unit

peer: Any = find_peer("lightly.loss") or _alone


class MACLLoss(peer.MACLLoss):
    r"""lightly's ``MACLLoss``: NT-Xent at a temperature that follows the alignment, its terms weighted.

    With u the unit vectors, b the other view of a, and A the mean of ``<u_ai, u_bi>`` over the N instances::

        t      = temperature * (1 + alpha * (A - A_0))
        term_i = log sum_{j != i} exp(<u_i, u_j> / t)  -  <u_i, u_p(i)> / t
        loss   = mean_i  term_i / (1 - exp(-term_i) + eps)

    t and the denominators are constants. No similarity is stored. A term and its denominator keep their digits where
    the probability ``exp(-term)`` is near 1. One instance gives 0, where lightly raises. For half inputs normalisation
    and sums are in float32, and the loss is rounded to the dtype that lightly returns: theirs, under autocast that of
    autocast on a CPU and float32 on a GPU.

    Shape:
        ``z0`` and ``z1`` [N, d]; a scalar.

    Raises:
        ValueError: a temperature below 1e-8, an alpha or an A_0 outside of 0 to 1, inputs of differing shape.
    """

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        common = torch.promote_types(z0.dtype, z1.dtype)
        points, _ = stack_views((z0.to(common), z1.to(common)))
        alpha, threshold = as_scalar("alpha", self.alpha), as_scalar("A_0", self.A_0)
        with torch.no_grad():
            alignment = (unit(z0) * unit(z1)).sum(1).mean()
            temperature = as_scalar("temperature", self.temperature) * (1 + alpha * (alignment - threshold))
        # by the engine, which takes a temperature of either sign
        stats = pair_stats(
            points, None, 1 / temperature, denominator=Pairs.NEGATIVE, positives=Pairs.POSITIVE, normalize=True
        )
        odds = stats.lse - stats.pos_sum  # the logarithm of 1 - P over P
        weights = 1 / (odds.detach().sigmoid() + as_scalar("eps", self.eps))
        return as_input((weights * softplus(odds)).mean(), points.z, "product")
