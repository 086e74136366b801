# SPDX-License-Identifier: Apache-2.0
"""Decoupled hyperspherical energy loss, for two views and for many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycl.core.pairs import Pairs
from pycl.engine.reduction import check_reduction, share_of, zero_if_empty
from pycl.engine.reductions import agreed_stats
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, check_two_views, logits_of_views, to_logit_scale
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def dhel(
    views: Views,
    *,
    temperature: Scalar = 0.3,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Decoupled hyperspherical energy loss (DHEL) on two views u, v.

    ::

        term_i = log sum_{j != i} exp(<u_i, u_j> / temperature) + log sum_{j != i} exp(<v_i, v_j> / temperature)
                 - <u_i, v_i> / temperature

    No pair of different instances across the views takes part. With one instance both sums are empty: they count
    as 0 with zero gradient.

    Args:
        views: ``[2, N, d]``, or two tensors ``[N, d]``; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: not exactly two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Koromilas et al., "Bridging Mini-Batch and Asymptotic Analysis in Contrastive Learning", arXiv 2405.18045, the
    loss L_DHEL (the released code's form, with the energies of both views).
    """
    check_reduction(reduction)
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    check_two_views("dhel", n_views)
    stats, everyone = agreed_stats(
        points,
        None,
        scale,
        denominator=Pairs.NEG_SAME_VIEW,
        positives=Pairs.POS_OTHER_VIEW,
        reduction=reduction,
        **options,
    )
    return share_of(zero_if_empty(stats.lse).view(2, -1).sum(0) - stats.pos_sum.view(2, -1)[0], reduction, everyone)


@loss()
def mv_dhel(
    views: Views,
    *,
    temperature: Scalar = 0.5,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Multi-view DHEL: one joint alignment term, one uniformity term per view.

    With ``s(a i, b j) = <u_ai, u_bj> / temperature``::

        term_i = sum_a log sum_{j != i} exp s(a i, a j)  -  log sum_{a < b} exp s(a i, b i)

    As the official code: the numerator runs over **unordered** pairs of views (an ordered sum would differ by
    log 2) and ``j = i`` is dropped below. Two views give :func:`dhel`. The product over views is a sum of logarithms
    here, so many views do not overflow. With one instance the sums over j are empty and count as 0 with zero gradient.

    Args:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", arXiv 2507.06979, the loss MV-DHEL.
    """
    check_reduction(reduction)
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    stats, everyone = agreed_stats(points, None, scale, denominator=Pairs.NEG_SAME_VIEW, reduction=reduction, **options)
    of_pairs = logits_of_views(points.z, n_views, scale, options["normalize"])
    first, second = torch.triu_indices(n_views, n_views, 1, device=of_pairs.device)
    aligned = of_pairs[first, second].logsumexp(0)
    return share_of(zero_if_empty(stats.lse).view(n_views, -1).sum(0) - aligned, reduction, everyone)
