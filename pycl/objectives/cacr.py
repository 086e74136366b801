# SPDX-License-Identifier: Apache-2.0
"""CACR: contrastive attraction and contrastive repulsion, between the views of a batch and against momentum keys."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group, agree, of_the_batch
from pycl.engine.average import mean_logit, pair_average
from pycl.engine.reduction import share_of
from pycl.engine.reductions import agreed_stats
from pycl.engine.views import stack_views
from pycl.functional._common import (
    Scalar,
    Views,
    check_features,
    check_positive,
    check_weight,
    unit,
)

LEAST_TAU = 1e-6  # of what is divided by: logits of smaller ones may leave float32's range


@of_the_batch
def cacr(
    views: Views,
    *,
    tau_pos: Scalar = 1.0,
    tau_neg: Scalar = 0.9,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    detach_weights: bool = False,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Contrastive attraction of the far positives, contrastive repulsion of the near negatives.

    With ``D(x_i, y_j) = |u_xi - u_yj|^2`` for views x and y and instances i and j::

        attraction = mean_{x, i} sum_{y != x} w+_y alpha D(x_i, y_i)       w+ = softmax_{y != x}( tau_pos D(x_i, y_i) )
        repulsion  = mean_{x < y, i} sum_{j != i} w-_j (-beta D(x_i, y_j)) w- = softmax_{j != i}( -tau_neg D(x_i, y_j) )
        value      = attraction + repulsion

    Both temperatures *multiply* the distances: at 0 all weights are equal. With two views there is one positive, and
    tau_pos does not matter. Negatives of view x come from the later views alone, as in the authors' code. With one
    instance there are none, and the repulsion is 0.

    Distances of positives are taken from differences. The expectation of those of negatives is the mean of a softmax's
    own logits, divided by -tau_neg. Where that is learned, close to 0, or the weights are constants, it comes from the
    mean of the candidates under the softmax. The authors' code stores all differences, ``[N, N, d]`` for each pair of
    views. As there, the gradient flows through the weights; ``detach_weights`` makes them constants.

    Args:
        views: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 2; float64, float32, bfloat16 or float16.
        tau_pos, tau_neg: numbers or 0-d tensors, at least 0.
        alpha, beta: numbers or 0-d tensors, at least 0.
        detach_weights: stop the gradient through w+ and w-, also that of both temperatures.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: fewer than two views, differing shapes, an empty batch, a temperature or a weight that is negative
            or not finite, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Zheng et al., "Contrastive Attraction and Contrastive Repulsion for Representation Learning", arXiv 2105.03746,
    the loss with the squared Euclidean distance as cost; the defaults are those of the authors' runs on CIFAR-10.
    """
    tau_pos, tau_neg = check_weight("tau_pos", tau_pos), check_weight("tau_neg", tau_neg)
    alpha, beta = check_weight("alpha", alpha), check_weight("beta", beta)
    points, n_views = stack_views(views)
    u = unit(points.z).view(n_views, -1, points.z.shape[1]).unbind()
    n = len(u[0])
    everyone = agree(group, points.z.device, [n], operator="cacr", views=n_views, dtype=str(points.z.dtype))
    terms = alpha * _attraction(u, tau_pos, detach_weights)
    if n > 1 or group is not None:
        with_squares = [(x, x.square().sum(1, keepdim=True)) for x in u]
        pairs = list(combinations(with_squares, 2))
        far = [_expected_distance(*x, *y, tau_neg, detach_weights, group, backend) for x, y in pairs]
        terms = terms - beta / len(pairs) * torch.stack(far).sum(0)
    return share_of(terms, "mean", everyone)


def _attraction(u: tuple[Tensor, ...], tau: Scalar, detach_weights: bool) -> Tensor:
    """The expected distance of every instance's views to the other views of it, mean over the views, [N]."""
    found = {pair: (u[pair[0]] - u[pair[1]]).square().sum(1) for pair in combinations(range(len(u)), 2)}
    every = range(len(u))
    others = [found[min(x, y), max(x, y)] for x in every for y in every if y != x]
    distance = torch.stack(others).view(len(u), len(u) - 1, -1)
    weights = (tau * distance).softmax(1)
    return ((weights.detach() if detach_weights else weights) * distance).sum(1).mean(0)


def _expected_distance(
    x: Tensor,
    xx: Tensor,
    y: Tensor,
    yy: Tensor,
    tau: Scalar,
    detach_weights: bool,
    group: Group | None,
    backend: str | None,
) -> Tensor:
    """``sum_j w_j |x_i - y_j|^2`` of every row of x, [N], from squared lengths [N, 1]: those of zero rows are not 1."""
    bias = -tau * yy.squeeze(1)
    sharing: dict[str, Any] = {"pairs": Pairs.OTHERS, "group": group, "backend": backend}
    if not isinstance(tau, Tensor) and tau >= LEAST_TAU and not detach_weights:
        mean_logits = mean_logit(Points(x), Points(y), 2.0 * tau, col_bias=bias, **sharing)
        return xx.squeeze(1) - mean_logits / tau
    mean = pair_average(
        Points(x),
        Points(y),
        torch.cat([y, yy], 1),
        2.0 * tau,
        col_bias=bias,
        detach_weights=detach_weights,
        **sharing,
    )
    return xx.squeeze(1) + mean[:, -1] - 2.0 * (x * mean[:, :-1]).sum(1)


@of_the_batch
def cacr_momentum(
    queries: Views,
    keys: Tensor,
    *,
    temperature: Scalar = 1.0,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""CACR against momentum keys: cross entropies of several views, the farthest view weighs most.

    With ``T = temperature``, unit queries u and unit keys k::

        value = sum_v mean_i p_vi CE_i( u_v k^T / T ) 2 T       p_vi = softmax over v of |u_vi - k_i|^2 / T

    The cross entropy picks the own key out of all keys, the own one among them. The weights p and the keys are
    constants; a temperature gets its gradient through the cross entropy and the factor alone. This is the loss of one
    key view. For key view i the authors pass all views *but* i as queries, and average over the key views.

    Args:
        queries: ``[V, N, d]``, or V tensors ``[N, d]``, V >= 1; float64, float32, bfloat16 or float16.
        keys: ``[N, d]``, constant; row i is the positive of every query i.
        temperature: positive number or 0-d tensor.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 input).

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch, a temperature that is not positive, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Zheng et al., arXiv 2105.03746; the authors' code for ImageNet with its default cost, ``rbf``.
    """
    temperature = check_positive("temperature", temperature)
    q, keys = _queries(queries), keys.detach() if isinstance(keys, Tensor) else keys
    n_views, n, d = q.shape
    check_features(queries=q.flatten(0, 1), keys=keys)
    if keys.shape != (n, d):
        raise ValueError(f"keys must have shape [{n}, {d}], one per instance of queries, got {tuple(keys.shape)}")
    stats, everyone = agreed_stats(
        Points(q.flatten(0, 1), n_views=n_views),
        Points(keys),
        1.0 / temperature,
        denominator=Pairs.ALL,
        positives=Pairs.POSITIVE,
        offset=None,
        normalize=True,
        group=group,
        backend=backend,
        loss="cacr_momentum",
        views=str(n_views),
    )
    with torch.no_grad():
        weights = ((unit(q) - unit(keys)).square().sum(2) / temperature).softmax(0)
    terms = weights * (stats.lse - stats.pos_sum).view(n_views, n)
    return 2.0 * temperature * share_of(terms.sum(0), "mean", everyone)


def _queries(queries: Views) -> Tensor:
    """``[V, N, d]``, V and N at least 1."""
    if isinstance(queries, Tensor):
        if queries.dim() != 3 or queries.numel() == 0:
            raise ValueError(f"queries must have shape [V, N, d] with V, N, d >= 1, got {tuple(queries.shape)}")
        return queries
    several = {f"queries[{v}]": view for v, view in enumerate(queries)}
    if not several:
        raise ValueError("queries must hold at least one view, got none")
    check_features(**several)
    if len(shapes := {tuple(view.shape) for view in several.values()}) > 1:
        raise ValueError(f"every view of queries must have one and the same shape [N, d], got {sorted(shapes)}")
    return torch.stack(tuple(several.values()))
