# SPDX-License-Identifier: Apache-2.0
"""MCLRec: sequences and what learned augmenters make of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.engine.extremes import pair_extremes
from pycl.engine.reductions import pair_cross_entropy
from pycl.functional._common import Scalar, as_scalar, check_matched, widen


def mclrec(
    h1: Tensor, h2: Tensor, v1: Tensor, v2: Tensor, *, regularizer: Scalar = 0.1, backend: str | None = None
) -> Tensor:
    r"""MCLRec's contrast of two augmentations of a sequence with learned views of them, and its regulariser.

    Scores are dot products of the embeddings as given, without a temperature. With z the 2B rows of a and b, ``p_i`` an
    anchor's score with its other view, ``n_i`` the largest and ``m_i`` the mean of its 2B - 2 scores with others::

        NTX(a, b) = mean_i ( log sum_{j != i} exp <z_i, z_j>  -  p_i )
        R(a, b)   = mean_i ( n_i + 2 max(p_i - n_i, 0) - m_i )
        value     = sum over (a, b) in (h1, v2), (h2, v1), (v1, v2) of NTX(a, b) + regularizer R(a, b)

    The largest negative's gradient goes to one pair, at a tie to that of the lowest index; the hinge has none at 0.
    The means take O(B d). One sequence has no negatives: R is 0.

    Args:
        h1, h2: ``[B, d]``, the representations of two augmentations of each sequence.
        v1, v2: ``[B, d]``, the augmenters' views of h1 and of h2; the authors normalise them before.
        regularizer: number or 0-d tensor, the weight of R.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch, an unknown backend.
        RuntimeError: the backend asked for is not built.

    Qin et al., "Meta-optimized Contrastive Learning for Sequential Recommendation", arXiv 2304.07763, the meta
    contrastive loss and the regularisation. R is written as ``mean [p - min(p, n)]+`` and ``mean [max(p, n) - s]+``
    there, whose second bracket is never negative; at ``p = n`` the code's minimum and maximum split their gradients.
    """
    for name, x in (("h2", h2), ("v1", v1), ("v2", v2)):
        check_matched(**{"h1": h1, name: x})
    weight = as_scalar("regularizer", regularizer)
    terms = []
    for a, b in ((h1, v2), (h2, v1), (v1, v2)):
        points = Points(torch.cat([a, b]), n_views=2)
        terms.append(
            pair_cross_entropy(
                points, None, denominator=Pairs.OTHERS, positives=Pairs.POSITIVE, reduction="mean", backend=backend
            )
        )
        if len(a) > 1:
            terms.append(weight * _spread(points, backend))
    return torch.stack(terms).sum()


def _spread(points: Points, backend: str | None) -> Tensor:
    """R: how far the hardest negative, and beyond it the positive, is above the mean of the negatives."""
    found = pair_extremes(points, None, negatives=Pairs.NEGATIVE, positives=Pairs.POSITIVE, backend=backend)
    hardest = found.negative + 2 * (found.positive - found.negative).relu()
    z = widen(points.z)
    n = len(z)
    total, (a, b) = z.sum(0), z.chunk(2)
    of_negatives = (total * total).sum() - (z * z).sum() - 2 * (a * b).sum()
    return hardest.mean() - of_negatives / (n * (n - 2))
