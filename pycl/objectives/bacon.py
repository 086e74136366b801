# SPDX-License-Identifier: Apache-2.0
"""BaCon's soft supervised contrastive loss: two points attract each other as much as their classes are alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Agreement, Group, agree, all_reduce_sum, of_the_batch
from pycl.engine.reduction import share_of, zero_if_empty
from pycl.engine.reductions import pair_cross_entropy, pair_stats
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, check_features, no_autocast, to_logit_scale, unit

NEGLIGIBLE = 1e-9  # of one view: a weight sum that is less of what its difference was taken from is rounding


@of_the_batch
def soft_sup_con(
    views: Views,
    probabilities: Tensor,
    *,
    temperature: Scalar = 0.07,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""BaCon: supervised contrastive learning with soft labels, the probabilities of the classes of every instance.

    With ``z_ab = <u_a, u_b> / temperature`` over all ``V * N`` points, ``p_a`` the probabilities of a's instance::

        term_a = log sum_{c != a} exp z_ac  -  sum_b W_ab z_ab / sum_b W_ab
        W_ab   = <p_a, p_b> for another instance, 1 for another view of a's, 0 for a itself

    and the value is the mean over all points. The weights have rank C, so sums of classes take their place:
    ``O(V N C d)``, and no matrix of weights. A point without any weight, of a single view, gives 0.

    Args:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 1; float64, float32, bfloat16 or float16; d may be large.
        probabilities: ``[N, C]``, at least 0, floating point; constant. Their rows need not sum to 1.
        temperature: positive number or 0-d tensor.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: views or probabilities that are not floating point.
        ValueError: no view, differing shapes or devices, an empty batch, probabilities of other instances, a
            temperature that is not positive, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Bai et al., "Towards Distribution-Agnostic Generalized Category Discovery", arXiv 2310.01376, the soft contrastive
    term. The authors' code tiles the weights to ``[2N, 2N]`` and takes features that are normalised already.
    """
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views) if len(views) != 1 else _one_view(views[0])
    n = len(points.z) // n_views
    check_features(probabilities=probabilities)
    if len(probabilities) != n or probabilities.device != points.z.device:
        raise ValueError(
            f"probabilities must have shape [{n}, C], one row per instance, and be on {points.z.device}, got "
            f"{tuple(probabilities.shape)} on {probabilities.device}"
        )
    facts = {"n_views": n_views, "classes": probabilities.shape[1]}
    everyone = agree(group, points.z.device, [len(points.z)], operator="soft_sup_con", **facts)
    u = unit(points.z).view(n_views, n, -1)
    attraction, weighted = _attraction(u, probabilities.detach(), everyone)
    sweep: dict[str, Any] = {"denominator": Pairs.OTHERS, "normalize": True, "group": group, "backend": backend}
    if n_views > 1:
        lse = pair_cross_entropy(points, None, scale, positives=Pairs.NONE, reduction="mean", **sweep)
    else:
        terms = zero_if_empty(pair_stats(points, None, scale, **sweep).lse).masked_fill(~weighted, 0.0)
        lse = share_of(terms, "mean", everyone)
    return lse - (scale * attraction).to(lse.dtype)


def _one_view(view: Tensor) -> tuple[Points, int]:
    check_features(views=view)
    return Points(view), 1


def _attraction(u: Tensor, p: Tensor, everyone: Agreement | None) -> tuple[Tensor, Tensor]:
    """This rank's share of the mean of the weighted mean cosines, and which instances have any weight."""
    n_views, n, _ = u.shape
    p = p.double()
    square = p.square().sum(1)
    of_all = p @ all_reduce_sum(p.sum(0), None if everyone is None else everyone.group)
    weight = n_views * (of_all - square) + (n_views - 1)
    weighted = weight > NEGLIGIBLE * of_all
    inverse = weighted / weight.masked_fill(~weighted, 1)
    wide = u if n_views > 1 else u.double()  # with one view differences may be much smaller than the sums
    p, square, inverse = (x.to(wide.dtype) for x in (p, square, inverse))
    with no_autocast(u):
        s = wide.sum(0)
        of_pairs = _product_of_sums(p.T @ s, (p * inverse[:, None]).T @ s, everyone)
        # pairs of one instance have the weight 1 instead, and a point with itself 0
        of_instance = inverse @ ((1 - square) * s.square().sum(1) - wide.square().sum((0, 2)))
    share = 1.0 if everyone is None else everyone.weight
    return ((of_pairs + of_instance) * (share / (n_views * n))).to(u.dtype), weighted


def _product_of_sums(a: Tensor, b: Tensor, everyone: Agreement | None) -> Tensor:
    """This rank's part of <a, b> of the sums over all ranks, with the gradient of the whole."""
    if everyone is None:
        return (a * b).sum()
    a_of_all, b_of_all = all_reduce_sum(torch.stack([a, b]).detach(), everyone.group)
    of_a: Tensor = (a * b_of_all).sum()
    of_b: Tensor = (a_of_all * b).sum()
    return of_b + (of_a - of_a.detach())
