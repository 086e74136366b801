# SPDX-License-Identifier: Apache-2.0
"""Losses that take all views of an instance at once: MV-InfoNCE and poly-view."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.core.pairs import Pairs
from pycl.engine.reduction import check_reduction, share_of
from pycl.engine.reductions import agreed_stats
from pycl.engine.validation import check_choice
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, logits_of_views, to_logit_scale
from pycl.functional._options import Options, loss

DENOMINATORS = {"all": Pairs.OTHERS, "cross_view": Pairs.POS_OTHER_VIEW | Pairs.NEG_OTHER_VIEW}
MEANS = ("geometric", "arithmetic")

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def mv_info_nce(
    views: Views,
    *,
    temperature: Scalar = 0.5,
    denominator: str = "all",
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Multi-view InfoNCE: one term per instance, all views in the numerator and the denominator.

    With ``s(a i, b j) = <u_ai, u_bj> / temperature``::

        term_i = log sum_a sum_{(b, j) in D(a, i)} exp s(a i, b j)  -  log sum_{a != b} exp s(a i, b i)

    * ``denominator="all"``: D is everything but the point itself, negatives of the own view included. This is the
      authors' released code.
    * ``denominator="cross_view"``: D is all points of the **other** views, the formula printed in its README.

    Numerator: ordered pairs of views, in both.

    Args:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        denominator: ``"all"`` or ``"cross_view"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown denominator, reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", arXiv 2507.06979, the loss
    MV-InfoNCE.
    """
    check_reduction(reduction)
    check_choice("denominator", denominator, DENOMINATORS)
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    stats, everyone = agreed_stats(
        points,
        None,
        scale,
        denominator=DENOMINATORS[denominator],
        positives=Pairs.POS_OTHER_VIEW,
        reduction=reduction,
        **options,
    )
    lse, pos_lse = (t.view(n_views, -1).logsumexp(0) for t in (stats.lse, stats.pos_lse))
    return share_of(lse - pos_lse, reduction, everyone)


@loss()
def poly_view(
    views: Views,
    *,
    temperature: Scalar = 0.2,
    mean: str = "geometric",
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Poly-view contrastive loss: each pair of views against every view of the other instances.

    With ``P_ab = <u_ai, u_bi> / temperature`` and ``R_a = log sum_{j != i} sum_b exp( <u_ai, u_bj> / temperature )``,
    ``p_ab = sigmoid(P_ab - R_a)`` is the probability that b is a's partner::

        geometric:   term_ai = - mean_{b != a} log p_ab        arithmetic:   term_ai = - log mean_{b != a} p_ab

    **Every** view of the other instances is a negative, the anchor's own view included; the other views of the
    same instance are in no denominator but their own. With one instance there is no negative and the loss is 0. Two
    views make both means one and the same.

    Args:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        mean: ``"geometric"`` or ``"arithmetic"``, the mean over partner views.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[V, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown mean, reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Shidani et al., "Poly-View Contrastive Learning", arXiv 2403.05490, the arithmetic and the geometric PVC loss.
    """
    check_reduction(reduction)
    check_choice("mean", mean, MEANS)
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    stats, everyone = agreed_stats(
        points, None, scale, denominator=Pairs.NEGATIVE, reduction=reduction, mean=mean, **options
    )
    of_pairs = logits_of_views(points.z, n_views, scale, options["normalize"])
    log_p = F.logsigmoid(of_pairs - stats.lse.view(n_views, 1, -1))
    itself = torch.eye(n_views, dtype=torch.bool, device=log_p.device).unsqueeze(-1)
    if mean == "geometric":
        terms = log_p.masked_fill(itself, 0.0).sum(1) / (1 - n_views)
    else:
        terms = math.log(n_views - 1) - log_p.masked_fill(itself, -torch.inf).logsumexp(1)
    return share_of(terms, reduction, everyone)
