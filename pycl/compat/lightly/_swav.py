# SPDX-License-Identifier: Apache-2.0
"""lightly's ``SwaVLoss`` and its ``sinkhorn``."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, cast

import torch
from torch import Tensor

from pycl.compat._common import all_ranks, codes_of, soft_cross_entropy, swapped_prediction
from pycl.compat._peer import Hooks, fall_back, find_peer
from pycl.compat.lightly import _alone

peer: Any = find_peer("lightly.loss") or _alone
_LIBRARY = None if peer is _alone else find_peer("lightly.loss.swav_loss")
_THEIRS = getattr(_LIBRARY, "sinkhorn", None)  # now: a framework may set the function below in its place
HOOKS = Hooks(peer.SwaVLoss, "subloss")


class SwaVLoss(peer.SwaVLoss):
    r"""lightly's ``SwaVLoss``: every crop predicts the Sinkhorn codes of the high-resolution crops.

    Crops are given as their prototype scores. With codes ``q_i`` of the I high-resolution crops (:func:`sinkhorn` on
    the scores of crop i and of ``queue_outputs[i]``), V crops in all and CE over temperature::

        loss = 1/I sum_i 1/(V-1) sum_{v != i} mean_b CE(scores_v[b], q_i[b])

    Codes are constants, computed in the log domain: no epsilon and no half scores overflow. A crop that predicts
    several codes does so at once, by their sum, while ``subloss`` is the cross entropy of one; a ``subloss`` of its own
    and a ``sinkhorn`` that was set in ``lightly.loss.swav_loss`` run lightly's code, as do ``sinkhorn_iterations=0``
    and an epsilon that is not positive. With ``sinkhorn_gather_distributed=True`` all ranks' samples share the
    prototypes; the loss stays that of the rank. Scores that are not finite give NaN.

    Shape:
        lists of scores [B, K], queue [Q, K] per high-resolution crop; a loss of shape [1] in the dtype of the first
        crop's scores, as lightly's, under autocast too (sums are in float32 for half scores).
    """

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        if why := self._pycl_why_not():
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().forward(high_resolution_outputs, low_resolution_outputs, queue_outputs))
        crops = [*high_resolution_outputs, *low_resolution_outputs]
        n_codes = len(high_resolution_outputs)
        queues = [None] * n_codes if queue_outputs is None else [queue_outputs[i] for i in range(n_codes)]
        codes = [self._codes(*pair) for pair in zip(high_resolution_outputs, queues, strict=True)]
        losses = swapped_prediction(crops, codes, lambda z, q: soft_cross_entropy(z, q, self.temperature))
        loss = sum(losses, crops[0].new_zeros(1, dtype=codes[0].dtype)) / ((len(crops) - 1) * n_codes)
        return loss.to(crops[0].dtype)

    def _pycl_why_not(self) -> str:
        """Why this loss runs lightly's code whatever it is given, or nothing."""
        if self.sinkhorn_iterations < 1:
            return "no iterations"
        if not self.sinkhorn_epsilon > 0:
            return "an epsilon that is not positive"
        if getattr(_LIBRARY, "sinkhorn", None) not in (_THEIRS, sinkhorn):
            return "another sinkhorn in lightly.loss.swav_loss"
        return HOOKS.replaced_in(self)

    @torch.no_grad()
    def _codes(self, scores: Tensor, queue: Tensor | None) -> Tensor:
        samples = scores if queue is None else torch.cat((scores, queue))
        codes = codes_of(
            samples,
            epsilon=self.sinkhorn_epsilon,
            iterations=index(self.sinkhorn_iterations),
            dtype=torch.promote_types(scores.dtype, torch.float32),
            group=all_ranks() if self.sinkhorn_gather_distributed else None,
        )
        return codes[: len(scores)]


@torch.no_grad()
def sinkhorn(out: Tensor, iterations: int = 3, epsilon: float = 0.05, gather_distributed: bool = False) -> Tensor:
    """lightly's ``sinkhorn``: codes [B, K] of prototype scores, in their dtype, by :func:`pycl.functional.sinkhorn`.

    All ranks' samples share the prototypes with ``gather_distributed=True``. In the log domain, where lightly's
    ``exp(out / epsilon)`` overflows for a small epsilon or for half scores. ``iterations=0`` and an epsilon that is not
    positive run lightly's code; scores that are not finite give NaN.
    """
    if iterations < 1 or not epsilon > 0:
        fall_back("sinkhorn", "no iterations" if iterations < 1 else "an epsilon that is not positive")
        if _THEIRS is None:
            raise ImportError("sinkhorn with these numbers runs lightly's own code: pip install lightly")
        return cast("Tensor", _THEIRS(out, iterations, epsilon, gather_distributed))
    group = all_ranks() if gather_distributed else None
    return codes_of(out, epsilon=epsilon, iterations=index(iterations), group=group)
