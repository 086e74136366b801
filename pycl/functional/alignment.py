# SPDX-License-Identifier: Apache-2.0
"""Alignment and uniformity, as losses and as measures of a trained representation."""

from __future__ import annotations

from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.core.tracing import log
from pycl.distributed.ranks import Group, agree, all_reduce_logsumexp_differentiable, of_the_batch
from pycl.engine.reduction import check_reduction, share_of
from pycl.engine.reductions import agreed_stats
from pycl.functional._common import Scalar, check_features, check_matched, check_positive, unit


@of_the_batch
def alignment(
    x: Tensor,
    y: Tensor,
    *,
    reduction: str = "mean",
    normalize: bool = False,
    group: Group | None = None,
) -> Tensor:
    r"""Squared distance between positive pairs, ``term_i = |x_i - y_i|^2``.

    Features are taken as they are given (``normalize=False``); the paper puts them on the unit sphere first.

    Args:
        x: ``[N, d]``; float64, float32, bfloat16 or float16.
        y: ``[N, d]``; row i is the positive of ``x_i``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        normalize: L2-normalise both inside.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point.
        ValueError: differing shapes or devices, an empty batch, an unknown reduction.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", arXiv 2005.10242, section 4.1 (alpha = 2).
    """
    check_reduction(reduction)
    check_matched(x=x, y=y)
    everyone = agree(
        group,
        x.device,
        [x.shape[0]],
        operator="alignment",
        dtype=str(x.dtype),
        normalize=normalize,
        reduction=reduction,
    )
    return share_of((unit(x, normalize) - unit(y, normalize)).square().sum(-1), reduction, everyone)


@of_the_batch
def uniformity(
    x: Tensor,
    *,
    t: Scalar = 2.0,
    normalize: bool = False,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Logarithm of the mean Gaussian potential over all pairs of points.

    ::

        log mean_{i != j} exp(-t |x_i - x_j|^2)

    One number for the whole batch, so there is no ``reduction``. Features are taken as they are given
    (``normalize=False``); the paper puts them on the unit sphere first. A single point has no pair: the value is
    then 0 with zero gradient.

    Args:
        x: ``[N, d]``; float64, float32, bfloat16 or float16.
        t: positive number or 0-d tensor.
        normalize: L2-normalise inside.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point.
        ValueError: not ``[N, d]``, an empty batch, a t that is not positive, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Wang and Isola, arXiv 2005.10242, section 4.1 (their pairs i < j have the same mean).
    """
    t = check_positive("t", t)
    check_features(x=x)
    z = unit(x, normalize)
    n, bias = z.shape[0], -t * z.square().sum(-1)
    if n == 1 and group is None:
        return 0.0 * bias.sum()
    stats, everyone = agreed_stats(
        Points(z if normalize else x),
        None,
        2.0 * t,
        denominator=Pairs.OTHERS,
        row_bias=bias,
        col_bias=bias,
        group=group,
        backend=backend,
    )
    lse = stats.lse.logsumexp(0)
    if everyone is not None:
        lse, n = all_reduce_logsumexp_differentiable(lse, everyone.group), everyone.n
    return lse - log(n * (n - 1), lse)
