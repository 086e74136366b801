# SPDX-License-Identifier: Apache-2.0
"""NT-Xent on any number of views, and its mean over pairs of views."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import instances
from pycl.engine.reduction import by_view, check_reduction, share_of
from pycl.engine.reductions import PairStats, agreed_stats, pair_cross_entropy, pair_stats
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, to_logit_scale
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


SAME_VIEW = Pairs.POS_SAME_VIEW | Pairs.NEG_SAME_VIEW


@loss()
def nt_xent(
    views: Views,
    *,
    temperature: Scalar = 0.5,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Normalised temperature-scaled cross entropy (SimCLR) over V views of N instances.

    With ``s_ij = <u_i, u_j> / temperature`` over all ``V * N`` points, ``P(i)`` the other views of i's instance::

        term_i = log sum_{j != i} exp s_ij  -  mean_{p in P(i)} s_ip

    The mean runs over all ``V * N`` anchors: SimCLR's equation 1 averaged over ``2N``. (The released SimCLR code
    adds the means of the two views and so is twice as large.) More than two views give the multi-positive form:
    every positive stays in the denominator. One instance and two views give 0 with zero gradient.

    Args:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[V, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709, equation 1.
    """
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    terms = pair_cross_entropy(
        points,
        None,
        scale,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        n_positives=n_views - 1,
        reduction=reduction,
        **options,
    )
    return by_view(terms, n_views)


@loss()
def pairwise_nt_xent(
    views: Views,
    *,
    temperature: Scalar = 0.5,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Two-view NT-Xent averaged over all ``V (V - 1) / 2`` pairs of views ("PWE").

    For anchor i of view a, with ``s`` as in :func:`nt_xent`::

        term_ai = mean_{b != a} [ log( sum_{j != i} exp s(a i, a j) + sum_j exp s(a i, b j) ) - s(a i, b i) ]

    With two views it is :func:`nt_xent`. Each pair of views takes ``N^2`` similarities and each view its own
    ``N^2 / 2`` once: as many as one NT-Xent over ``V * N`` points. They come from V / 2 sweeps, each of which reads
    all points, so many views of few instances take longer than that.

    Args:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` (over the ``V * N`` anchors) or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[V, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`nt_xent`.

    The pairwise baseline of Koromilas et al., arXiv 2507.06979; the two-view loss is arXiv 2002.05709, equation 1.
    """
    check_reduction(reduction)
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    of_views, everyone = agreed_stats(
        points, None, scale, denominator=Pairs.NEG_SAME_VIEW, reduction=reduction, **options
    )
    n = len(points.z) // n_views
    ids = instances(n, points.z.device, options["group"]).repeat(n_views)
    view = torch.arange(n_views, device=points.z.device).repeat_interleave(n)
    labelled = Points(points.z, ids, view)
    terms, _ = pairwise_terms(labelled, n_views, of_views.lse, scale, n_views // 2 * n, options)
    return share_of(by_view(terms / (n_views - 1), n_views), reduction, everyone)


def pairwise_terms(
    points: Points, n_views: int, own: Tensor, scale: Scalar, half: int | None, options: Options
) -> tuple[Tensor, Tensor]:
    """The NT-Xent terms of every point with its partners in the other views, added up, and how many these are.

    Args:
        points: with ids and views, one view after the other; partners may be missing.
        own: log-sum-exps over the negatives of the own view.
        half: how many points the first half of the views has; None computes twice what the halves have to do with each
            other, as ranks have to that do not all have points in both.
    """
    z, ids, view = points.z, cast("Tensor", points.ids), cast("Tensor", points.views)
    total, count, everyone = torch.zeros_like(own), torch.zeros_like(own), slice(None)
    for shift in range(1, n_views // 2 + 1):
        opposite = 2 * shift == n_views  # a partner's partner is oneself
        sides = (slice(half), slice(half, None)) if opposite and half else (everyone, everyone)
        anchors, partners = sides
        both = pair_stats(
            Points(z[anchors], ids[anchors], view[anchors]),
            Points(z[partners], ids[partners], (view[partners] - shift) % n_views),  # called as their anchors' view
            scale,
            denominator=SAME_VIEW,
            positives=Pairs.POS_SAME_VIEW,
            offset=None,
            sides="both",
            **options,
        )
        found = [_terms_of(own[side], stats) for side, stats in zip(sides, both, strict=True)]
        if opposite:
            found = [(torch.cat(x), torch.cat(n)) for x, n in [zip(*found, strict=True)]] if half else found[:1]
        for terms, partners_there in found:
            total, count = total + terms, count + partners_there
    return total, count


def _terms_of(own: Tensor, stats: PairStats) -> tuple[Tensor, Tensor]:
    """The terms of anchors that have their partner, and 0 for the others; whether they have it."""
    missing = stats.pos_count == 0
    lse = torch.logaddexp(own, stats.lse.masked_fill(missing, 0.0))  # of two -inf the gradient is NaN
    return (lse - stats.pos_sum).masked_fill(missing, 0.0), stats.pos_count
