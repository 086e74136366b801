# SPDX-License-Identifier: Apache-2.0
"""Feature Transformation: positives pushed apart and a queue mixed with itself, and the statistics of its scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.engine.modifiers import check_below, check_integers
from pycl.engine.reductions import pair_stats
from pycl.functional import info_nce
from pycl.functional._common import Scalar, as_scalar, check_features, check_matched, no_autocast, to_logit_scale, unit


def feature_transform(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: Scalar = 0.07,
    positive: Scalar | None = None,
    negative: Scalar | None = None,
    permutation: Tensor | None = None,
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""MoCo with an extrapolated positive pair and interpolated negatives.

    With ``q, k, Q`` the unit rows of query, key and queue, ``p = positive``, ``n = negative``::

        q'_i = p q_i + (1 - p) k_i      k'_i = p k_i + (1 - p) q_i      Q'_j = n Q_j + (1 - n) Q_permutation(j)
        value = mean_i ( log( exp(<q'_i, k'_i> / t) + sum_j exp(<q'_i, Q'_j> / t) ) - <q'_i, k'_i> / t )

    None of the three is normalised again. ``p > 1`` makes the positive harder: ``<q', k'>`` is
    ``s + 2 p (p - 1) (s - 1)`` for ``s = <q, k>``. The query gets its gradient through q' and through k'.
    ``positive=1, negative=1`` is MoCo.

    Args:
        query: ``[N, d]``.
        key: ``[N, d]``, constant; row i is the positive of query i.
        queue: ``[K, d]``, constant.
        temperature: positive number or 0-d tensor.
        positive: a finite number, constant; None draws ``1 + Beta(2, 2)``, one for the batch.
        negative: a finite number, constant; None draws ``Beta(1.6, 1.6)``, one for the batch.
        permutation: integers ``[K]`` from 0 to K - 1, the partner of every entry of the queue; None draws one.
        generator: of what is drawn, in this order: positive, negative, permutation; None takes torch's own. What is
            given is not drawn. On another device than the queue its numbers are copied.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: inputs that are not floating point, a permutation that is not of integers.
        ValueError: shapes or devices that do not fit, an empty batch or queue, a temperature that is not positive, a
            factor that is not finite, a permutation outside of the queue, an unknown backend.
        RuntimeError: the backend asked for is not built.

    Zhu et al., "Improving Contrastive Learning by Visualizing Feature Transformation", arXiv 2108.02982, with
    one factor for a batch as in the command of its README; the code's defaults draw one for each feature and mix
    negatives only. Its class stores the mixed keys in the queue unless it is handed others: the keys belong there.
    """
    check_matched(query=query, key=key)
    check_features(query=query, queue=queue)
    of_positive = _factor("positive", positive, (2.0, 2.0), generator, query)
    of_negative = _factor("negative", negative, (1.6, 1.6), generator, query)
    if positive is None:
        of_positive = 1 + of_positive
    partner = _partners(permutation, queue, generator)
    q, k, others = unit(query), unit(key.detach()), unit(queue.detach())
    if isinstance(of_negative, Tensor):
        of_negative = of_negative.to(others.dtype)
    return info_nce(
        of_positive * q + (1 - of_positive) * k,
        of_positive * k + (1 - of_positive) * q,
        torch.lerp(others.index_select(0, partner), others, of_negative),  # one pass over the queue
        temperature=temperature,
        normalize=False,
        group="local",
        backend=backend,
    )


@torch.no_grad()
def score_statistics(
    query: Tensor, candidates: Tensor, *, temperature: Scalar | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""What Feature Transformation looks at: mean, variance and mean exponential of every query's scores.

    With ``s_ij`` the cosine of query i and candidate j, over K candidates::

        mean_i = mean_j s_ij      variance_i = sum_j (s_ij - mean_i)^2 / (K - 1)      mean_j exp(s_ij / t)

    The variance is that of the scores with centred candidates, a sum of at most d squares from their QR factor, so a
    small spread around a large mean keeps its digits. There is no gradient.

    Args:
        query: ``[N, d]``.
        candidates: ``[K, d]``, such as a queue.
        temperature: positive number or 0-d tensor; None leaves the exponential out.
        backend: name of the backend that the exponential runs on; None picks one.

    Returns:
        Mean, variance and mean exponential, ``[N]`` each, in float32 (float64 for float64 input). The third is None
        without a temperature, and infinity where it leaves the range. The variance of one candidate is NaN.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: shapes or devices that do not fit, an empty set, a temperature that is not positive, an unknown
            backend.
        RuntimeError: the backend asked for is not built.

    Zhu et al., arXiv 2108.02982. The authors' code stores the matrix of scores, and mean and variance in float16.
    """
    check_features(query=query, candidates=candidates)
    scale = None if temperature is None else to_logit_scale(temperature)
    registry.choose(backend, query.device.type, query.dtype)
    stats = None
    if scale is not None:
        args = Points(query), Points(candidates), scale
        stats = pair_stats(*args, denominator=Pairs.ALL, offset=None, normalize=True, backend=backend)
    x, y = unit(query), unit(candidates)
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y, k = x.to(dtype), y.to(dtype), len(y)
    middle = y.mean(0)
    spread = y - middle
    with no_autocast(x):
        if k > spread.shape[1]:
            spread = torch.linalg.qr(spread, mode="r")[1]
        mean, deviations = (x * middle).sum(1), x @ spread.T
    variance = deviations.square().sum(1) / (k - 1) if k > 1 else torch.full_like(mean, torch.nan)
    return mean, variance, None if stats is None else (stats.lse - math.log(k)).exp()


def _factor(
    name: str, given: Scalar | None, shape: tuple[float, float], generator: torch.Generator | None, like: Tensor
) -> Scalar:
    """A finite constant, or a draw of a beta distribution, which is a Dirichlet distribution of two."""
    if given is None:
        device = like.device if generator is None else generator.device
        drawn = torch._sample_dirichlet(torch.tensor(shape, dtype=torch.float64, device=device), generator)
        return drawn[0].to(like.device)
    value = as_scalar(name, given)
    if isinstance(value, Tensor):
        return value.detach().to(like.device)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def _partners(given: Tensor | None, queue: Tensor, generator: torch.Generator | None) -> Tensor:
    k = len(queue)
    if given is None:
        device = queue.device if generator is None else generator.device
        return torch.randperm(k, generator=generator, device=device).to(queue.device)
    partners = check_integers("permutation", given, queue, (k,), f"[{k}], one per entry of queue")
    check_below("permutation", partners, k, "the length of queue")
    return partners
