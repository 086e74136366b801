# SPDX-License-Identifier: Apache-2.0
"""lightly's ``KoLeoLoss``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import embedding, normalize

from pycl.compat._common import as_input
from pycl.compat._peer import find_peer
from pycl.compat.lightly import _alone
from pycl.core.pairs import Pairs, Points
from pycl.engine.extremes import pair_extremes
from pycl.functional._common import widen

peer: Any = find_peer("lightly.loss") or _alone


class KoLeoLoss(peer.KoLeoLoss):
    r"""lightly's ``KoLeoLoss``: minus the logarithm of the distance to the nearest neighbour.

    With u the vectors over ``max(norm, eps)`` and n(i) the other point with the largest cosine to ``u_i``::

        loss = mean_i -log( pairwise_distance(u_i, u_n(i)) + eps )

    The nearest neighbours come from the engine, without a matrix of cosines; the distances are those of the loss's own
    ``pairwise_distance``, of any ``p``. The gradient flows through both points. As in lightly, a single point is its
    own neighbour. For half inputs all is in float32, and the loss is rounded to their dtype.

    Shape:
        ``x`` [N, d]; a scalar.

    Raises:
        ValueError: an input that is not [N, d].
    """

    def forward(self, x: Tensor) -> Tensor:
        u = normalize(widen(x), p=2, dim=-1, eps=self.eps)
        found = pair_extremes(Points(u.detach()), negatives=Pairs.OTHERS, positives=Pairs.NONE)
        # an embedding adds up the gradients of a row that several have chosen in one order
        neighbours = embedding(found.negative_index.clamp_min(0), u)
        loss = -(self.pairwise_distance(u, neighbours) + self.eps).log().mean()
        return as_input(loss, x, "input")
