# SPDX-License-Identifier: Apache-2.0
"""SepCLR: features that two data sets have in common, and those that only the target set has."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.core.tracing import log
from pycl.distributed.ranks import Agreement, Group, agree, all_reduce_sum, of_the_batch
from pycl.engine.reduction import share_of
from pycl.engine.reductions import agreed_stats
from pycl.functional._common import Scalar, check_features, check_positive, check_weight, unit, widen
from pycl.functional.alignment import uniformity


@of_the_batch
def joint_entropy(
    common: Tensor,
    salient: Tensor,
    *,
    temperature: Scalar = 0.5,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The negative joint entropy of common and salient features, by a Gaussian kernel: SepCLR's k-JEM.

    With unit rows c of common and rows s of salient as they are given::

        value = mean_i log mean_j exp( -( |c_i - c_j|^2 + |s_i - s_j|^2 ) / (2 temperature) )

    The mean over j holds i itself, whose distance is exactly 0; so the value lies between ``-log N``, where all are far
    apart, and 0, where all are alike. The authors' code takes that distance from a product, which gives 0.008 for
    salient rows of length 110.

    Distances of different points come from products, here too. In float32 they are off by some ``1e-7 |s|^2``, with s
    measured from the mean of the batch; from 0 where several rows are 0, as for the background.

    Args:
        common: ``[N, dc]``; float64, float32, bfloat16 or float16.
        salient: ``[N, ds]``, as given.
        temperature: positive number or 0-d tensor.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point.
        ValueError: not ``[N, d]``, different numbers of rows, an empty batch, a temperature that is not positive, an
            unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Louiset et al., "Separating common from salient patterns with Contrastive Representation Learning", arXiv
    2402.11928, the term that keeps common and salient features from holding the same.
    """
    t = 0.5 / check_positive("temperature", temperature)
    check_features(common=common)
    check_features(salient=salient)
    if len(common) != len(salient) or common.device != salient.device:
        raise ValueError(
            f"common and salient must have one row per instance on one device, got {tuple(common.shape)} on "
            f"{common.device} and {tuple(salient.shape)} on {salient.device}"
        )
    everyone = agree(group, salient.device, [len(salient)], operator="joint_entropy", salient=salient.shape[1])
    return _joint_entropy(unit(common), _centred(widen(salient), everyone), t, group, backend)


@of_the_batch
def sep_clr(
    common: Tensor,
    salient: Tensor,
    is_target: Tensor,
    *,
    temperature: Scalar = 0.5,
    salient_weight: Scalar = 1000.0,
    null_weight: Scalar = 1000.0,
    entropy_weight: Scalar = 10.0,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""SepCLR: common features agree on all rows, salient ones on target rows, and are 0 on background rows.

    For two views: unit rows c of common, rows s of salient as they are given, and t, which is s with 0 in the rows of
    the background. With T = temperature::

        value = align(c0, c1) + unif(c0) + unif(c1)
              + salient_weight ( align over target rows of (s0, s1) + unif(t0) + unif(t1) )
              + null_weight mean over views of mean over background rows of |s|^2 / (2T)
              + entropy_weight mean over views of joint_entropy(c, t)
        align(x, y) = mean_i |x_i - y_i|^2 / (2T)
        unif(x)     = log mean_{i < j} exp( -|x_i - x_j|^2 / (2T) )

    A mean over target rows, or over background rows, is 0 where there are none; the authors' code then gives NaN. One
    instance has no pair, and its unif is 0. Where all points are far apart, unif is -inf in the authors' code, which
    takes the logarithm of a mean of exponentials; here it is a log-sum-exp. On the digits of :func:`joint_entropy` in
    float32, see there.

    Args:
        common: ``[2, N, dc]``; float64, float32, bfloat16 or float16.
        salient: ``[2, N, ds]``, as given.
        is_target: bool ``[N]``, False for the background.
        temperature: positive number or 0-d tensor.
        salient_weight, null_weight, entropy_weight: numbers or 0-d tensors, at least 0. The first two are those of the
            authors' runs on CIFAR-MNIST and CelebA; CheXpert has 1 and 10, ODIR 1 and 100.
        group: ranks that share the batch, each with instances of its own: see :mod:`pycl.distributed`.
        backend: name of the backend to run on; None picks one.

    Returns:
        A scalar; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, an is_target that is not bool.
        ValueError: not two views, different numbers of rows, an empty batch, a temperature that is not positive, a
            negative weight, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Louiset et al., "Separating common from salient patterns with Contrastive Representation Learning", arXiv
    2402.11928; weighted as in the authors' code.
    """
    t = 0.5 / check_positive("temperature", temperature)
    salient_weight, null_weight = (
        check_weight("salient_weight", salient_weight),
        check_weight("null_weight", null_weight),
    )
    entropy_weight = check_weight("entropy_weight", entropy_weight)
    _check_batch(common, salient, is_target)
    n = len(is_target)
    everyone = agree(group, salient.device, [n], operator="sep_clr", salient=salient.shape[2])
    c, s = unit(common), widen(salient)
    dtype = torch.promote_types(c.dtype, s.dtype)
    c, s = c.to(dtype), s.to(dtype)
    teacher = s.masked_fill(~is_target.unsqueeze(1), 0.0)
    n_target, n = _all_of(is_target.sum(dtype=dtype), everyone), n if everyone is None else everyone.n
    terms = (
        (c[0] - c[1]).square().sum(1)
        + salient_weight * n / n_target.clamp(min=1) * (teacher[0] - teacher[1]).square().sum(1)
        + null_weight * n / (n - n_target).clamp(min=1) * (s - teacher).square().sum(2).mean(0)
    )
    value = share_of(t * terms, "mean", everyone)
    for of_c, of_t in zip(c, _centred(teacher, everyone), strict=True):
        value = value + uniformity(of_c, t=t, group=group, backend=backend)
        value = value + salient_weight * uniformity(of_t, t=t, group=group, backend=backend)
        value = value + entropy_weight / 2 * _joint_entropy(of_c, of_t, t, group, backend)
    return value


def _joint_entropy(c: Tensor, s: Tensor, t: Scalar, group: Group | None, backend: str | None) -> Tensor:
    x = torch.cat([c, s], 1)
    bias = -t * x.square().sum(1)
    stats, everyone = agreed_stats(
        Points(x),
        None,
        2.0 * t,
        denominator=Pairs.OTHERS,
        row_bias=bias,
        col_bias=bias,
        group=group,
        backend=backend,
    )
    terms = torch.logaddexp(stats.lse, torch.zeros_like(stats.lse))  # the pair (i, i)
    n = len(x) if everyone is None else everyone.n
    return share_of(terms, "mean", everyone) - log(n, terms)


def _centred(s: Tensor, everyone: Agreement | None) -> Tensor:
    """Rows less a constant: distances stay as they are, and products lose fewer of their digits.

    The constant is the mean, but 0 where several rows are 0, such as those of the background: no two rows are closer,
    and their products are exact.
    """
    given = s.detach()
    n_zero = (given == 0).all(-1).sum(-1, keepdim=True, dtype=s.dtype)
    sums = _all_of(torch.cat([given.sum(-2), n_zero], -1), everyone)
    mean = sums[..., :-1] / (s.shape[-2] if everyone is None else everyone.n)
    return s - mean.masked_fill(sums[..., -1:] > 1, 0.0).unsqueeze(-2)


def _all_of(value: Tensor, everyone: Agreement | None) -> Tensor:
    return value if everyone is None else all_reduce_sum(value, everyone.group)


def _check_batch(common: Tensor, salient: Tensor, is_target: Tensor) -> None:
    for name, x in (("common", common), ("salient", salient)):
        if not isinstance(x, Tensor) or x.dim() != 3 or len(x) != 2:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must have shape [2, N, d], got {got}")
        check_features(**{name: x.flatten(0, 1)})
    if not isinstance(is_target, Tensor) or is_target.dtype != torch.bool:
        raise TypeError(f"is_target must be a bool tensor, got {getattr(is_target, 'dtype', type(is_target).__name__)}")
    n = common.shape[1]
    if salient.shape[1] != n or is_target.shape != (n,):
        raise ValueError(
            f"salient and is_target must have one row per instance of common, which are {n}, got shapes "
            f"{tuple(salient.shape)} and {tuple(is_target.shape)}"
        )
    if not common.device == salient.device == is_target.device:
        raise ValueError(
            f"salient and is_target must be on {common.device} as common is, got {salient.device} and "
            f"{is_target.device}"
        )
