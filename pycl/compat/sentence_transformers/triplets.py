# SPDX-License-Identifier: Apache-2.0
"""Triplet losses of the hardest positive and the hardest negative of every anchor in a batch of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from sentence_transformers.sentence_transformer import losses
from torch import Tensor
from torch.nn.functional import softplus

from pycl.compat._peer import fall_back
from pycl.core.pairs import Pairs, Points
from pycl.engine.extremes import pair_extremes
from pycl.functional._common import unit

from ._card import Carded
from ._scores import unlike_rows

_METRICS = losses.BatchHardTripletLossDistanceFunction
_EUCLIDEAN, _COSINE = _METRICS.euclidean_distance, _METRICS.cosine_distance


class BatchHardTripletLoss(Carded, losses.BatchHardTripletLoss):
    r"""sentence-transformers' ``BatchHardTripletLoss``: the farthest of an anchor's class, the nearest of the others.

    With embeddings ``x_i`` of classes ``y_i`` and distances ``D``::

        loss = mean_i max(0, max_{j != i, y_j = y_i} D(x_i, x_j) - min_{y_j != y_i} D(x_i, x_j) + margin)

    Arguments, errors, attributes and value are the library's; so are the anchors without positives, whose distance is
    0, and those without negatives, whose term is ``margin``. One pass over the pairs says which are the farthest and
    the nearest, half a matrix that is not stored; the distances of those alone are then computed. A ``distance_metric``
    other than the library's ``euclidean_distance`` and ``cosine_distance`` runs the library's code. Half embeddings
    give a float32 loss there and here. Of candidates within rounding of each other, either may be taken; embeddings
    that are equal have distance 0, which the library's formula rounds.

    Shape:
        One column of embeddings [B, d], and B labels; a scalar.
    """

    def batch_hard_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        if why := _unlike_classes(labels, embeddings) or self._pycl_why_not():
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().batch_hard_triplet_loss(labels, embeddings))
        terms = _gaps(self, labels, embeddings) + self.triplet_margin
        loss: Tensor = terms.masked_fill(terms < 0, 0).mean()  # relu has another gradient at 0
        return loss

    def _pycl_why_not(self) -> str:
        return _why_not(self)


class BatchHardSoftMarginTripletLoss(Carded, losses.BatchHardSoftMarginTripletLoss):
    r"""sentence-transformers' ``BatchHardSoftMarginTripletLoss``: :class:`BatchHardTripletLoss` without a margin.

    With the same distances::

        loss = mean_i log(1 + exp(max_{j != i, y_j = y_i} D(x_i, x_j) - min_{y_j != y_i} D(x_i, x_j)))
    """

    def batch_hard_triplet_soft_margin_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        if why := _unlike_classes(labels, embeddings) or self._pycl_why_not():
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().batch_hard_triplet_soft_margin_loss(labels, embeddings))
        return softplus(_gaps(self, labels, embeddings)).mean()

    def _pycl_why_not(self) -> str:
        return _why_not(self)


def _why_not(loss: Any) -> str:
    metric = loss.distance_metric
    if metric in (_EUCLIDEAN, _COSINE):
        return ""
    return f"distance_metric={getattr(metric, '__qualname__', type(metric).__name__)}"


def _unlike_classes(labels: Tensor, embeddings: Tensor) -> str:
    """Why a batch is not embeddings with a class each, or nothing."""
    return unlike_rows([embeddings]) or ("" if labels.numel() == len(embeddings) else "another number of labels")


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    return cast("Tensor", (x - y).norm(dim=1))  # no gradient at 0, as in the library


def _cosine(u: Tensor, v: Tensor) -> Tensor:
    return 1 - (u * v).sum(1)


def _gaps(loss: Any, labels: Tensor, embeddings: Tensor) -> Tensor:
    """Of every anchor, the distance to its hardest positive minus that to its hardest negative, [B]."""
    cosine = loss.distance_metric == _COSINE
    x = unit(embeddings, normalize=cosine)
    distance = _cosine if cosine else _euclidean
    with torch.no_grad():
        minus_squares = None if cosine else -x.square().sum(1)
        found = pair_extremes(
            Points(x, _classes(labels)),
            logit_scale=1.0 if cosine else 2.0,  # with the biases -|x - y|^2
            negatives=Pairs.NEGATIVE,
            positives=Pairs.POSITIVE,
            row_bias=minus_squares,
            col_bias=minus_squares,
        )
    own = distance(x, x).detach()
    positive, negative = (_to(distance, x, index) for index in (found.positive_index, found.negative_index))
    positive = positive.clamp_min(0).masked_fill(found.positive_index < 0, 0)
    # without a negative the library adds the largest distance of the row to the smallest, which is that to itself
    return positive - torch.where(found.negative_index < 0, torch.maximum(own, positive) + own, negative)


def _classes(labels: Tensor) -> Tensor:
    """Labels of any type as integers."""
    labels = labels.view(-1)
    return labels.unique(return_inverse=True)[1] if labels.is_floating_point() else labels.long()


def _to(distance: Callable[[Tensor, Tensor], Tensor], x: Tensor, index: Tensor) -> Tensor:
    """Distances to the candidates of these positions; of -1, to the first."""
    return distance(x, x.index_select(0, index.clamp_min(0)))
