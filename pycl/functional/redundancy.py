# SPDX-License-Identifier: Apache-2.0
"""Losses that remove redundancy between features: VICReg and Barlow Twins."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import accumulation_dtype
from pycl.core.tracing import observed
from pycl.distributed.ranks import Agreement, Group, agree, all_reduce_sum, all_reduce_sum_differentiable, of_the_batch
from pycl.engine.reduction import share_of
from pycl.engine.reductions import pair_sum
from pycl.functional._common import check_matched, check_number, no_autocast

VARIANCE_EPS, NORM_EPS = 1e-4, 1e-5
Side: TypeAlias = tuple[Tensor, Tensor]  # features [n, d], and a factor of each


@of_the_batch
def vicreg(
    x: Tensor,
    y: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""VICReg: views agree, every feature varies, and no two features vary together.

    With ``var`` and ``C`` the unbiased variances and covariances of the features over the batch::

        invariance mean_id (x_id - y_id)^2
        + variance   sum over x, y of  mean_d [1 - sqrt(var_d + 1e-4)]+ / 2
        + covariance sum over x, y of  sum_{d != e} C_de^2 / d

    One instance has variances and covariances of 0. The covariances are those of the features ``[d, d]`` or, where
    there are many more features than instances, products of the instances: see :func:`barlow_twins`.

    Args:
        x: ``[N, d]``, taken as it is given; float64, float32, bfloat16 or float16.
        y: ``[N, d]``; row i is another view of ``x_i``.
        invariance, variance, covariance: the weights of the three parts, at least 0.
        group: ranks that share the batch; variances and covariances are those of all ranks.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, weights that are not numbers.
        ValueError: differing shapes or devices, an empty batch, a negative weight, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", arXiv
    2105.04906, equation 6; values are those of lightly's ``VICRegLoss``, which refuses a batch of one.
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    weights = {name: check_number(name, weight, 0, math.inf) for name, weight in weights.items()}
    everyone = _checked("vicreg", x, y, group, backend, weights)
    x, y = _widened(x, y)
    value = weights["invariance"] * share_of((x - y).square().mean(1), "mean", everyone)
    for z in (x, y):
        centred, n = _centred(z, everyone)
        factor = centred.new_ones(z.shape[1]) / max(n - 1, 1) ** 0.5
        var, covariances = _products((centred, factor), None, everyone, backend)
        value = value + weights["variance"] / 2 * (1 - (var + VARIANCE_EPS).sqrt()).relu().mean()
        value = value + weights["covariance"] / z.shape[1] * covariances
    return value


@of_the_batch
def barlow_twins(
    x: Tensor, y: Tensor, *, redundancy: float = 5e-3, group: Group | None = None, backend: str | None = None
) -> Tensor:
    r"""Barlow Twins: the cross-correlation of the features of two views becomes the identity.

    With features of mean 0 over the batch, divided by ``sqrt(var + 1e-5)`` of the biased variance, ``C = x^T y / N``::

        sum_d (C_dd - 1)^2  +  redundancy sum_{d != e} C_de^2

    One instance has C = 0. C is stored where it has no more numbers than the batch, and with a group, whose ranks add
    up their parts. Otherwise its squares are summed like those of pairs of points, or, with more than four features to
    an instance, as ``||C||^2 = sum_ij <x_i, x_j> <y_i, y_j> / N^2`` over pairs of instances, less the diagonal.
    ``torch.compile`` always gets pairs of features.

    Args:
        x: ``[N, d]``; float64, float32, bfloat16 or float16.
        y: ``[N, d]``; row i is another view of ``x_i``.
        redundancy: the weight of the second sum, at least 0.
        group: ranks that share the batch; means, variances and C are those of all ranks.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, a weight that is no number.
        ValueError: differing shapes or devices, an empty batch, a negative weight, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", arXiv 2103.03230, equation 1;
    values are those of lightly's ``BarlowTwinsLoss`` on one process. On several ranks lightly and the authors
    normalise with the mean and variance of a rank, here of the batch.
    """
    redundancy = check_number("redundancy", redundancy, 0, math.inf)
    everyone = _checked("barlow_twins", x, y, group, backend, {"redundancy": redundancy})
    sides: list[Side] = []
    for z in _widened(x, y):
        centred, n = _centred(z, everyone)
        var = _over_the_batch(centred.square().sum(0), everyone) / n
        sides.append((centred, (n * (var + NORM_EPS)).rsqrt()))
    own, others = _products(sides[0], sides[1], everyone, backend)
    return (own - 1).square().sum() + redundancy * others


def _checked(
    name: str, x: Tensor, y: Tensor, group: Group | None, backend: str | None, weights: dict[str, float]
) -> Agreement | None:
    check_matched(x=x, y=y)
    registry.choose(backend, x.device.type, torch.promote_types(x.dtype, y.dtype))
    return agree(group, x.device, [x.shape[0]], operator=name, dtype=str(x.dtype), d=x.shape[1], **weights)


def _widened(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the one dtype in which sums are accumulated."""
    dtype = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
    return x.to(dtype), y.to(dtype)


def _over_the_batch(sums: Tensor, everyone: Agreement | None) -> Tensor:
    """Sums over this rank's instances become those over all."""
    return sums if everyone is None else all_reduce_sum_differentiable(sums, everyone.group)


def _centred(z: Tensor, everyone: Agreement | None) -> tuple[Tensor, int]:
    """Features less their mean over the batch, a constant, and how many instances the batch has.

    What comes of centred features has gradients that sum to 0 over the batch, so that none goes through the mean.
    """
    if everyone is None:
        return z - z.detach().mean(0), z.shape[0]
    return z - all_reduce_sum(z.detach().sum(0), everyone.group) / everyone.n, everyone.n


def _products(a: Side, b: Side | None, everyone: Agreement | None, backend: str | None) -> tuple[Tensor, Tensor]:
    """Of the products of the features of two sides: the diagonal, and the sum of the squares off it; b is a if None."""
    (x, of_x), (y, of_y) = a, b or a
    n, d = x.shape
    if everyone is not None or (not observed() and d <= n):
        with no_autocast(x):
            # what ranks have in common comes after their sum, or its gradient would be that of one rank's use
            matrix = _over_the_batch(x.T @ y, everyone) * of_x[:, None] * of_y
        on_diagonal = torch.eye(d, dtype=torch.bool, device=x.device)
        return matrix.diagonal(), matrix.masked_fill(on_diagonal, 0).square().sum()
    x, y = x * of_x, y * of_y
    own = (x * y).sum(0)
    if observed() or d <= 4 * n:
        features = Points(x.T.contiguous()), Points(y.T.contiguous())
        return own, pair_sum(
            *features, negatives=Pairs.NEGATIVE, offset=None, map="square", reduction="sum", backend=backend
        )
    return own, _of_instances(x, None if b is None else y, backend) - own.square().sum()


def _of_instances(x: Tensor, y: Tensor | None, backend: str | None) -> Tensor:
    """``||x^T y||^2``, summed over pairs of rows, which are few."""
    if y is None:
        return _squares(Points(x), None, backend)
    # 4 p q = (p + q)^2 - (p - q)^2, p and q the products of two rows of x and of y
    both, apart = Points(torch.cat([x, y], 1)), Points(torch.cat([x, -y], 1))
    return (_squares(both, None, backend) - _squares(both, apart, backend)) / 4


def _squares(rows: Points, cols: Points | None, backend: str | None) -> Tensor:
    return pair_sum(rows, cols, negatives=Pairs.ALL, map="square", reduction="sum", backend=backend)
