# SPDX-License-Identifier: Apache-2.0
"""solo-learn's functions: ``from pycl.compat.solo import simclr_loss_func`` instead of ``from solo.losses.simclr``.

As solo-learn's, they gather from all ranks wherever ``torch.distributed`` is initialised, and what
DistributedDataParallel averages is the gradient of one process with all samples, also where ranks bring batches of
different sizes, which solo-learn does not take. Half inputs are summed in float32. Every other name of ``solo.losses``
is solo-learn's own, where it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, cast

import torch
from torch import Tensor, nn

from pycl import functional
from pycl.compat._common import (
    all_ranks,
    as_input,
    codes_of,
    nothing,
    signed,
    signed_scale,
    soft_cross_entropy,
    swapped_prediction,
)
from pycl.compat._peer import fall_back, find_peer, forward_names
from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import LOCAL, Group, together
from pycl.engine.reduction import share_of
from pycl.engine.reductions import agreed_stats
from pycl.functional._common import Scalar

__all__ = ["SinkhornKnopp", "nnclr_loss_func", "simclr_loss_func", "swav_loss_func"]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    r"""solo-learn's ``simclr_loss_func``: points of one index against all others, summed inside the logarithm.

    With ``s`` the cosine over temperature and P(i) the other points of i's index::

        loss = mean_i [ log sum_{j != i} exp s_ij - log sum_{p in P(i)} exp s_ip ]

    Any number of views, in any order; labels as indexes make it supervised. No similarity is stored, and none
    overflows: solo-learn's ``exp(s)`` does in float32 for a temperature below 0.0113. An index that occurs once has
    no positive and makes the loss infinite, as in solo-learn.

    Shape:
        z [N, d], indexes [N]; a scalar in the dtype of z (under autocast float32, on a CPU autocast's).

    Raises:
        TypeError: indexes that are not integers.
        ValueError: shapes that do not fit, a temperature of 0.
    """
    return as_input(_simclr(z, indexes, temperature, group=all_ranks()), z, "product")


@together
def _simclr(z: Tensor, indexes: Tensor, temperature: Scalar, *, group: Group | None) -> Tensor:
    stats, everyone = agreed_stats(
        Points(z, indexes),
        None,
        signed_scale(temperature),
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        normalize=True,
        group=group,
    )
    return share_of(stats.lse - stats.pos_lse, "mean", everyone)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    r"""solo-learn's ``nnclr_loss_func``: every neighbour finds its prediction among those of all ranks.

    With ``s`` the cosine over temperature: ``mean_i [ log sum_j exp s(nn_i, p_j) - s(nn_i, p_i) ]``, by
    :func:`pycl.functional.info_nce`, whose errors are these (but a negative temperature is none).

    Shape:
        nn and p [N, d]; a scalar in their dtype (float32 under autocast).
    """
    group = all_ranks()
    if group is None and nn.shape == p.shape and len(nn) == 1:
        return as_input(nothing(nn, p), nn)
    query, positive = signed(nn, temperature)
    return as_input(functional.info_nce(query, p, temperature=positive, group=group or LOCAL), nn)


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


__getattr__, __dir__ = forward_names(__name__, "solo.losses", "solo-learn")
