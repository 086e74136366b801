# SPDX-License-Identifier: Apache-2.0
"""solo-learn's ``swav_loss_func`` and its ``SinkhornKnopp``."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, cast

import torch
from torch import Tensor, nn

from pycl.compat._common import all_ranks, as_input, codes_of, soft_cross_entropy, swapped_prediction
from pycl.compat._peer import fall_back, find_peer


def swav_loss_func(preds: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    r"""solo-learn's ``swav_loss_func``: every view predicts the assignments of the others.

    The mean over pairs of views v and i != v of ``mean_b - sum_k assignments_i[b, k] log softmax_k(preds_v[b] /
    temperature)``. A view's predictions of several assignments are one, of their sum; gradients flow to both.

    Shape:
        V predictions and up to V assignments, of the first views, [N, K] each; a scalar in their dtype (under autocast
        on a GPU float32).
    """
    losses = swapped_prediction(preds, assignments, lambda z, q: soft_cross_entropy(z, q, temperature))
    loss = torch.stack(losses).sum() / (len(assignments) * (len(preds) - 1))
    return as_input(loss, preds[0], "input")


_Base: Any = getattr(find_peer("solo.utils.sinkhorn_knopp"), "SinkhornKnopp", nn.Module)


class SinkhornKnopp(_Base):
    """solo-learn's ``SinkhornKnopp``: assignments [B, K] of scores [B, K] by :func:`pycl.functional.sinkhorn`.

    In the log domain, where solo-learn's ``exp(Q / epsilon)`` overflows for a small epsilon or half scores. All ranks
    share the prototypes, wherever ``torch.distributed`` is initialised; ``world_size``, which cancels out of the
    assignments, is kept as an attribute. Scores that are not finite give NaN; ``num_iters`` below 1 and an epsilon that
    is not positive run solo-learn's code.

    Raises:
        ValueError: such numbers where solo-learn is not installed.
    """

    def __init__(self, num_iters: int = 3, epsilon: float = 0.05, world_size: int = 1) -> None:
        super().__init__()
        self.num_iters = num_iters
        self.epsilon = epsilon
        self.world_size = world_size

    @torch.no_grad()
    def forward(self, Q: Tensor) -> Tensor:
        if _Base is not nn.Module and (why := self._pycl_why_not()):
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().forward(Q))
        return codes_of(Q, epsilon=self.epsilon, iterations=index(self.num_iters), group=all_ranks())

    def _pycl_why_not(self) -> str:
        """Why this runs solo-learn's code whatever it is given, or nothing."""
        if self.num_iters < 1:
            return "no iterations"
        return "" if self.epsilon > 0 else "an epsilon that is not positive"
