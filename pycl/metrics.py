# SPDX-License-Identifier: Apache-2.0
"""Measures of a learned representation. No gradients; measures are Python numbers.

``similarity_histogram`` is :func:`pycl.functional.similarity_histogram`; ``alignment`` and ``uniformity`` are the
losses of the same name on the unit sphere, where their authors put the points.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pycl import functional
from pycl.engine.validation import check_count
from pycl.engine.views import check_labels
from pycl.functional import similarity_histogram, similarity_topk
from pycl.functional._common import check_features, check_positive, widen
from pycl.functional._sinkhorn_args import check_marginal

__all__ = [
    "Assignments",
    "alignment",
    "assignments",
    "effective_rank",
    "knn_accuracy",
    "linear_probe_accuracy",
    "similarity_histogram",
    "uniformity",
]

ROW_SUM_TOLERANCE = 1e-2  # of codes: half types round 2^-9 of an entry away, and more of one below their normal range


@torch.no_grad()
def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    r"""Share of queries whose class wins the weighted vote of their k most similar points in the bank.

    With ``B_k(q)`` the k points of the bank with the largest cosine similarity to q::

        vote_c(q) = sum_{j in B_k(q)} [label_j = c] exp(cos(q, b_j) / temperature)

    The query-by-bank matrix is searched tile by tile and never stored. Between classes with equal votes the smaller
    label wins.

    Args:
        bank: ``[M, d]``; float64, float32, bfloat16 or float16.
        bank_labels: int ``[M]``.
        queries: ``[N, d]``, never themselves in the bank.
        query_labels: int ``[N]``.
        k: how many neighbours vote; a bank smaller than that votes as a whole.
        temperature: positive; small values leave the vote to the nearest.

    Returns:
        Accuracy in [0, 1].

    Raises:
        TypeError: features that are not floating point, labels that are not integers, a k that is no integer.
        ValueError: differing numbers of features or devices, an empty set, an entry that is not finite, labels of
            another length, k < 1, a temperature that is not positive.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978, section
    3.4.
    """
    _check(bank=bank, queries=queries)
    bank_labels = _labels("bank_labels", bank_labels, bank)
    query_labels = _labels("query_labels", query_labels, queries)
    k = check_count("k", k)
    temperature = float(check_positive("temperature", temperature))
    cosine, neighbour = similarity_topk(queries, bank, min(k, len(bank)))
    classes, bank_class = bank_labels.unique(return_inverse=True)
    # only ratios of votes count; the largest cosine is taken off so that a small temperature does not overflow
    weight = ((cosine - cosine[:, :1]) / temperature).exp()
    votes = weight.new_zeros(len(queries), len(classes)).scatter_add_(1, bank_class[neighbour], weight)
    return float((classes[votes.argmax(1)] == query_labels).double().mean())


@torch.no_grad()
def linear_probe_accuracy(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor) -> float:
    r"""Test accuracy of a multinomial logistic regression on frozen features.

    ::

        min_{W, b}  sum_i [ log sum_c exp(<w_c, z_i> + b_c) - (<w_y_i, z_i> + b_y_i) ] + |W|^2 / 2

    Features are first shifted and scaled to mean 0 and variance 1 on the training set. scikit-learn's solver, at its
    default strength (C = 1).

    Args:
        train_z: ``[M, d]``; float64, float32, bfloat16 or float16.
        train_y: int ``[M]``, two classes or more.
        test_z: ``[N, d]``.
        test_y: int ``[N]``.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: features that are not floating point, labels that are not integers.
        ValueError: differing numbers of features, an empty set, an entry that is not finite, labels of another
            length, a single class.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits  # which scikit-learn brings
    except ImportError as error:
        raise ImportError("linear_probe_accuracy needs scikit-learn: pip install scikit-learn") from error
    _check(train_z=train_z, test_z=test_z)
    train_y, test_y = _labels("train_y", train_y, train_z), _labels("test_y", test_y, test_z)
    if len(train_y.unique()) < 2:
        raise ValueError("train_y must hold at least two classes, got one")
    # float64: in float32 the solver stops early at its own rounding
    train_z, test_z = train_z.double(), test_z.double()
    mean, std = train_z.mean(0), train_z.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)  # a constant feature carries nothing, and must not become nan
    train_x, test_x = (((z - mean) / std).cpu().numpy() for z in (train_z, test_z))
    # one thread: the solver's products are small; two took four times as long at 1438 x 128, and one is repeatable
    with threadpool_limits(1, user_api="blas"):
        probe = LogisticRegression(max_iter=2000).fit(train_x, train_y.cpu().numpy())
        return float(probe.score(test_x, test_y.cpu().numpy()))


@torch.no_grad()
def effective_rank(z: Tensor) -> float:
    r"""How many directions the points use: the exponential of the entropy of their singular values.

    With the singular values ``sigma_k`` of z::

        p_k = sigma_k / sum_l sigma_l        erank(z) = exp( - sum_k p_k log p_k )

    Between 1 (all points on one line through the origin) and ``min(n, d)`` (orthonormal rows or columns); 0 for a z
    of zeros. Points are taken as they are given, neither centred nor normalised.

    Args:
        z: ``[n, d]``; float64, float32, bfloat16 or float16.

    Returns:
        The effective rank, a real number.

    Raises:
        TypeError: a z that is not floating point.
        ValueError: not ``[n, d]``, an empty z, entries that are not finite.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
    """
    _check(z=z)
    sigma = torch.linalg.svdvals(z.double())
    if sigma[0] == 0:
        return 0.0
    p = sigma / sigma.sum()
    return float(torch.special.entr(p).sum().exp())


@torch.no_grad()
def alignment(x: Tensor, y: Tensor) -> float:
    r"""Mean squared distance of positive pairs on the unit sphere, ``mean_i |x_i - y_i|^2``; 0 is perfect, 2 is chance.

    Args:
        x: ``[N, d]``.
        y: ``[N, d]``; row i is the positive of ``x_i``.

    Raises:
        TypeError, ValueError: as :func:`pycl.functional.alignment`.
    """
    return functional.alignment(x, y, normalize=True, group="local").item()


@torch.no_grad()
def uniformity(x: Tensor, *, t: float = 2.0) -> float:
    r"""``log mean_{i != j} exp(-t |x_i - x_j|^2)`` on the unit sphere; 0 is a single point, lower is more even.

    Args:
        x: ``[N, d]``.
        t: positive number.

    Raises:
        TypeError, ValueError: as :func:`pycl.functional.uniformity`.
    """
    return functional.uniformity(x, t=t, normalize=True, group="local").item()


class Assignments(NamedTuple):
    """What :func:`assignments` finds in the codes of B samples over K prototypes."""

    entropy: float
    perplexity: float
    dead: int
    marginal_error: float


@torch.no_grad()
def assignments(codes: Tensor, *, prototype_marginal: Tensor | None = None, dead_below: float = 0.01) -> Assignments:
    r"""How sharply samples are assigned to prototypes, and how evenly the prototypes are used.

    With the share ``s_k = mean_b codes_bk`` of each prototype and its marginal ``m_k``, by default ``1 / K``::

        entropy        = mean_b ( - sum_k codes_bk log codes_bk )      0 for hard codes, log K where all are equal
        perplexity     = exp( - sum_k s_k log s_k )                    prototypes in use, from 1 to K
        dead           = number of k with s_k < dead_below m_k
        marginal_error = sum_k |s_k - m_k|                             0 where the marginal is met, at most 2

    Works on codes of :func:`pycl.functional.sinkhorn`, and on predictions ``softmax(scores / temperature)``, which
    nothing forces to use all prototypes. B samples with hard codes leave at least ``K - B`` prototypes dead: give it
    the codes of many batches.

    Args:
        codes: ``[B, K]``, not negative, every row with a sum of 1 up to the dtype's rounding (1 % is let pass, and
            divided out); float64, float32, bfloat16 or float16.
        prototype_marginal: ``m`` [K], positive with a sum of 1; None for ``1 / K``.
        dead_below: the part of its marginal (of its equal share, where that is ``1 / K``) below which a prototype
            counts as dead, in (0, 1].

    Returns:
        The four numbers; the entropy in nats.

    Raises:
        TypeError: codes that are not floating point, a dead_below that is no number.
        ValueError: codes that are not ``[B, K]`` with B, K >= 1, not finite, negative or with rows of another sum; a
            marginal as :func:`pycl.functional.sinkhorn` refuses it; a dead_below outside (0, 1].
    """
    _check(codes=codes)
    if not (dead_below := float(check_positive("dead_below", dead_below))) <= 1.0:
        raise ValueError(f"dead_below must be at most 1, got {dead_below}")
    if (least := codes.min().item()) < 0:
        raise ValueError(f"codes must not be negative, got {least:g}")
    if prototype_marginal is not None:
        prototype_marginal = check_marginal("prototype_marginal", prototype_marginal, codes.shape[1], codes)
    sums = codes.sum(1, dtype=torch.float64)
    worst = int((off := (sums - 1).abs()).argmax())
    if off[worst] > ROW_SUM_TOLERANCE:
        raise ValueError(f"codes must sum to 1 in every row, got {sums[worst].item():g} in row {worst}")
    codes = widen(codes)
    codes = codes / sums.to(codes.dtype)[:, None]
    share = codes.mean(0, dtype=torch.float64)
    share = share / share.sum()  # rows sum to 1 but for their dtype's rounding
    target = torch.full_like(share, 1 / len(share)) if prototype_marginal is None else prototype_marginal.double()
    return Assignments(
        entropy=float(torch.special.entr(codes).sum(1, dtype=torch.float64).mean()),
        perplexity=math.exp(float(torch.special.entr(share).sum())),
        dead=int((share < dead_below * target).sum()),
        marginal_error=float((share - target).abs().sum()),
    )


def _check(**features: Tensor) -> None:
    """``check_features``, and no infinity or nan: they would turn into an accuracy that looks like one."""
    check_features(**features)
    for name, z in features.items():
        if not z.isfinite().all():
            raise ValueError(f"{name} must be finite, got inf or nan")


def _labels(name: str, labels: Tensor, z: Tensor) -> Tensor:
    """``check_labels`` with the argument's own name in the message."""
    try:
        return check_labels(labels, len(z), z)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
