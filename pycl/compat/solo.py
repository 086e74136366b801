# SPDX-License-Identifier: Apache-2.0
"""solo-learn's functions: ``from pycl.compat.solo import simclr_loss_func`` instead of ``from solo.losses.simclr``.

As solo-learn's, they gather from all ranks wherever ``torch.distributed`` is initialised, and what
DistributedDataParallel averages is the gradient of one process with all samples. Half inputs are summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pycl import functional
from pycl.compat._common import all_ranks, as_input, soft_cross_entropy, swapped_prediction
from pycl.engine import pair_stats
from pycl.functional._common import to_logit_scale
from pycl.pairs import Pairs, Points

__all__ = ["SinkhornKnopp", "nnclr_loss_func", "simclr_loss_func", "swav_loss_func"]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    r"""solo-learn's ``simclr_loss_func``: points of one index against all others, summed inside the logarithm.

    With ``s`` the cosine over temperature and P(i) the other points of i's index::

        loss = mean_i [ log sum_{j != i} exp s_ij - log sum_{p in P(i)} exp s_ip ]

    Any number of views, in any order; labels as indexes make it supervised. No similarity is stored, and none
    overflows: solo-learn's ``exp(s)`` does in float32 for a temperature below 0.0113. An index that occurs once has
    no positive and makes the loss infinite, as in solo-learn.

    Shape:
        z [N, d], indexes [N]; a scalar in the dtype of z (float32 under autocast).

    Raises:
        TypeError: indexes that are not integers.
        ValueError: shapes that do not fit, a temperature that is not positive.
    """
    stats = pair_stats(
        Points(z, indexes),
        None,
        to_logit_scale(temperature),
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        normalize=True,
        group=all_ranks(),
    )
    return as_input((stats.lse - stats.pos_lse).mean(), z)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    r"""solo-learn's ``nnclr_loss_func``: every neighbour finds its prediction among those of all ranks.

    With ``s`` the cosine over temperature: ``mean_i [ log sum_j exp s(nn_i, p_j) - s(nn_i, p_i) ]``, by
    :func:`pycl.functional.info_nce`, whose errors are these.

    Shape:
        nn and p [N, d]; a scalar in their dtype (float32 under autocast).
    """
    return as_input(functional.info_nce(nn, p, temperature=temperature, group=all_ranks()), nn)


def swav_loss_func(preds: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    r"""solo-learn's ``swav_loss_func``: every view predicts the assignments of the others.

    The mean over pairs of views v and i != v of ``mean_b - sum_k assignments_i[b, k] log softmax_k(preds_v[b] /
    temperature)``. A view's predictions of several assignments are one, of their sum; gradients flow to both.

    Shape:
        V predictions and up to V assignments, of the first views, [N, K] each; a scalar in their dtype.
    """
    losses = swapped_prediction(preds, assignments, lambda z, q: soft_cross_entropy(z, q, temperature))
    loss = torch.stack(losses).sum() / (len(assignments) * (len(preds) - 1))
    return as_input(loss, preds[0])


class SinkhornKnopp(nn.Module):
    """solo-learn's ``SinkhornKnopp``: assignments [B, K] of scores [B, K] by :func:`pycl.functional.sinkhorn`.

    In the log domain, where solo-learn's ``exp(Q / epsilon)`` overflows for a small epsilon or half scores. All ranks
    share the prototypes, wherever ``torch.distributed`` is initialised; ``world_size``, which cancels out of the
    assignments, is kept as an attribute.

    Raises:
        ValueError: ``num_iters`` below 1, an epsilon that is not positive; on the CPU scores of NaN or infinity.
    """

    def __init__(self, num_iters: int = 3, epsilon: float = 0.05, world_size: int = 1) -> None:
        super().__init__()
        self.num_iters = num_iters
        self.epsilon = epsilon
        self.world_size = world_size

    @torch.no_grad()
    def forward(self, Q: Tensor) -> Tensor:
        return functional.sinkhorn(Q, epsilon=self.epsilon, iterations=self.num_iters, group=all_ranks())
