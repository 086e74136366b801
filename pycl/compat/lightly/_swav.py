# SPDX-License-Identifier: Apache-2.0
"""lightly's ``SwaVLoss`` and its ``sinkhorn``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pycl import functional
from pycl.compat._common import all_ranks, as_input, soft_cross_entropy, swapped_prediction
from pycl.compat._peer import fall_back, find_peer
from pycl.compat.lightly import _alone

peer: Any = find_peer("lightly.loss") or _alone


class SwaVLoss(peer.SwaVLoss):
    r"""lightly's ``SwaVLoss``: every crop predicts the Sinkhorn codes of the high-resolution crops.

    Crops are given as their prototype scores. With codes ``q_i`` of the I high-resolution crops (:func:`sinkhorn` on
    the scores of crop i and of ``queue_outputs[i]``), V crops in all and CE over temperature::

        loss = 1/I sum_i 1/(V-1) sum_{v != i} mean_b CE(scores_v[b], q_i[b])

    Codes are constants, computed in the log domain: no epsilon and no half scores overflow. A crop that predicts
    several codes does so at once, by their sum, while ``subloss`` is the cross entropy of one; a subclass with a
    ``subloss`` of its own runs lightly's code, as do ``sinkhorn_iterations=0``. With
    ``sinkhorn_gather_distributed=True`` all ranks' samples share the prototypes; the loss stays that of the rank.

    Shape:
        lists of scores [B, K], queue [Q, K] per high-resolution crop; a loss of shape [1], as lightly's, in the dtype
        of the scores (float32 under autocast; sums are in float32 for half scores).

    Raises:
        ValueError: an epsilon that is not positive; on the CPU scores of NaN or infinity.
    """

    def subloss(self, z: Tensor, q: Tensor) -> Tensor:
        """Mean cross entropy of scores ``z`` [B, K] over temperature with codes ``q`` [B, K]."""
        return as_input(soft_cross_entropy(z, q, self.temperature), z)

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        crops = [*high_resolution_outputs, *low_resolution_outputs]
        n_codes = len(high_resolution_outputs)
        why = "a subloss of its own" if type(self).subloss is not SwaVLoss.subloss else ""
        if why := why or ("no iterations" if self.sinkhorn_iterations == 0 else ""):
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().forward(high_resolution_outputs, low_resolution_outputs, queue_outputs))
        queues = [None] * n_codes if queue_outputs is None else [queue_outputs[i] for i in range(n_codes)]
        codes = [self._codes(*pair) for pair in zip(high_resolution_outputs, queues, strict=True)]
        losses = swapped_prediction(crops, codes, lambda z, q: soft_cross_entropy(z, q, self.temperature))
        loss = sum(losses, crops[0].new_zeros(1, dtype=codes[0].dtype)) / ((len(crops) - 1) * n_codes)
        return as_input(loss, crops[0])

    @torch.no_grad()
    def _codes(self, scores: Tensor, queue: Tensor | None) -> Tensor:
        samples = scores if queue is None else torch.cat((scores, queue))
        codes = functional.sinkhorn(
            samples,
            epsilon=self.sinkhorn_epsilon,
            iterations=self.sinkhorn_iterations,
            dtype=torch.promote_types(scores.dtype, torch.float32),
            group=all_ranks() if self.sinkhorn_gather_distributed else None,
        )
        return codes[: len(scores)]


@torch.no_grad()
def sinkhorn(out: Tensor, iterations: int = 3, epsilon: float = 0.05, gather_distributed: bool = False) -> Tensor:
    """lightly's ``sinkhorn``: codes [B, K] of prototype scores, in their dtype, by :func:`pycl.functional.sinkhorn`.

    All ranks' samples share the prototypes with ``gather_distributed=True``. In the log domain, where lightly's
    ``exp(out / epsilon)`` overflows for a small epsilon or for half scores; ``iterations=0`` runs lightly's code.
    """
    if iterations == 0:
        fall_back("sinkhorn", "no iterations")
        found = find_peer("lightly.loss.swav_loss")
        if found is None:
            raise ImportError("sinkhorn with iterations=0 runs lightly's own code: pip install lightly")
        return cast("Tensor", found.sinkhorn(out, iterations, epsilon, gather_distributed))
    group = all_ranks() if gather_distributed else None
    return functional.sinkhorn(out, epsilon=epsilon, iterations=iterations, group=group)
