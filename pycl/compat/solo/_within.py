# SPDX-License-Identifier: Apache-2.0
"""solo-learn's losses within the batch: ``simclr_loss_func`` and ``nnclr_loss_func``."""

from __future__ import annotations

from torch import Tensor

from pycl import functional
from pycl.compat._common import all_ranks, as_input, nothing, signed, signed_scale
from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import LOCAL, Group, together
from pycl.engine.reduction import share_of
from pycl.engine.reductions import agreed_stats
from pycl.functional._common import Scalar


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
