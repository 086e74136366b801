# SPDX-License-Identifier: Apache-2.0
"""NT-Xent with weighted hard negatives, with a correction for false negatives, or with both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.core.pairs import Pairs
from pycl.distributed.ranks import agree
from pycl.engine.reduction import by_view, check_reduction, share_of, zero_if_empty
from pycl.engine.reductions import pair_stats
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, check_number, check_two_views, to_logit_scale
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def hard_negative_nce(
    views: Views,
    *,
    temperature: Scalar = 0.5,
    beta: float = 1.0,
    tau_plus: float = 0.0,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""NT-Xent on two views whose negatives are weighted by ``exp(beta s)`` and, with tau_plus, debiased.

    With s the cosine over temperature, p the positive of anchor i, and j over its ``M = 2N - 2`` negatives::

        R      = mean_j w_j exp s_ij * M,    w_j = exp(beta s_ij) / mean_k exp(beta s_ik)
        Ng     = max( (R - M tau_plus exp p) / (1 - tau_plus),  M exp(-1 / temperature) )
        term_i = log( exp p + Ng ) - p

    Everything stays in the logarithm. The weights have their gradient. Where the maximum takes its second argument, the
    negatives have no gradient, nor has the positive inside Ng. ``beta = 0`` is the debiased loss, with ``tau_plus = 0``
    NT-Xent. One instance has no negatives and gives 0 with zero gradient.

    Args:
        views: ``[2, N, d]``, or two tensors ``[N, d]``; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        beta: how steeply the weights grow, at least 0.
        tau_plus: the share of positives among what counts as negatives, at least 0 and below 1.
        reduction: ``"mean"`` over the 2N anchors, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[2, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point, a beta or tau_plus that is no number.
        ValueError: not exactly two views, differing shapes, an empty batch, a temperature that is not positive, beta or
            tau_plus out of range, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Robinson et al., "Contrastive Learning with Hard Negative Samples", arXiv 2010.04592, equation 4; the correction is
    that of Chuang et al., "Debiased Contrastive Learning", arXiv 2007.00224, equation 8. Both codes take exponentials
    first, which overflow in float32 at ``(1 + beta) / temperature > 88``; values are the same.
    """
    check_reduction(reduction)
    beta = check_number("beta", beta, 0, math.inf)
    tau_plus = check_number("tau_plus", tau_plus, 0, 1)
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    check_two_views("hard_negative_nce", n_views)
    everyone = agree(options["group"], points.z.device, [points.z.shape[0]], operator="hard_negative_nce")
    stats = pair_stats(
        points,
        None,
        scale,
        denominator=Pairs.NEGATIVE,
        positives=Pairs.POS_OTHER_VIEW,
        slopes=(beta, 1 + beta) if beta else None,
        **options,
    )
    positive = stats.pos_sum
    n_negatives = (points.z.shape[0] if everyone is None else everyone.n) - 2
    log_n = positive.new_full((), n_negatives).clamp_min(1).log()
    lse = zero_if_empty(stats.lse)
    mean = lse[1] - lse[0] if beta else lse - log_n  # log (R / M)
    if tau_plus:
        mean = _debiased(mean, positive, tau_plus)
    least = -scale.to(mean.device, mean.dtype) if isinstance(scale, Tensor) else -scale
    negatives = (mean.clamp(min=least) + log_n).masked_fill(
        (stats.lse == -torch.inf).view(-1, mean.shape[0])[0], -torch.inf
    )
    return by_view(share_of(-logsigmoid(positive - negatives), reduction, everyone), n_views)


def _debiased(mean: Tensor, positive: Tensor, tau_plus: float) -> Tensor:
    """``log( (exp mean - tau_plus exp positive) / (1 - tau_plus) )``; without a gradient -inf where there is none."""
    gap = math.log(tau_plus) + positive - mean
    none = gap >= 0
    gap = gap.masked_fill(none, -1.0)
    return (mean + torch.log(-torch.expm1(gap)) - math.log1p(-tau_plus)).masked_fill(none, -torch.inf)
