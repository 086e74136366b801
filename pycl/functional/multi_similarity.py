# SPDX-License-Identifier: Apache-2.0
"""Multi-similarity: a metric-learning loss of labelled points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.core.pairs import Pairs, Points
from pycl.engine.reduction import check_reduction, share_of
from pycl.engine.reductions import agreed_stats
from pycl.engine.views import check_labels
from pycl.functional._common import Scalar, as_scalar, check_features, check_positive
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def multi_similarity(
    z: Tensor,
    labels: Tensor,
    *,
    alpha: Scalar = 2.0,
    beta: Scalar = 50.0,
    base: Scalar = 0.5,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Multi-similarity: a soft hinge at ``base`` on the positives, and a steeper one on the negatives.

    With s the cosine, P(i) the other points of i's class and N(i) the points of other classes::

        term_i = log( 1 + sum_{p in P(i)} exp(-alpha (s_ip - base)) ) / alpha
               + log( 1 + sum_{n in N(i)} exp(  beta (s_in - base)) ) / beta

    The mean runs over all anchors. An empty set contributes 0. Pairs are not mined: ``pycl.engine.pair_extremes`` has
    what the authors' miner looks for.

    Args:
        z: ``[N, d]``; float64, float32, bfloat16 or float16.
        labels: integers ``[N]``.
        alpha: the steepness at positives, a positive number or 0-d tensor.
        beta: the steepness at negatives, likewise.
        base: the similarity at which both turn, a number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: embeddings that are not floating point, labels that are not integers.
        ValueError: not ``[N, d]``, an empty batch, labels of another length or device, an alpha or beta that is not
            positive, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", arXiv 1904.06627,
    equation 15; values and defaults are those of pytorch-metric-learning's ``MultiSimilarityLoss``.
    """
    check_reduction(reduction)
    alpha, beta, base = check_positive("alpha", alpha), check_positive("beta", beta), as_scalar("base", base)
    check_features(z=z)
    points = Points(z, check_labels(labels, z.shape[0], z))
    of_positives, everyone = agreed_stats(
        points, None, -alpha, denominator=Pairs.POSITIVE, reduction=reduction, **options
    )
    of_negatives, _ = agreed_stats(points, None, beta, denominator=Pairs.NEGATIVE, **options)
    positives = -logsigmoid(-of_positives.lse - alpha * base) / alpha
    negatives = -logsigmoid(beta * base - of_negatives.lse) / beta
    return share_of(positives + negatives, reduction, everyone)
