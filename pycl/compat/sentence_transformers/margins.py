# SPDX-License-Identifier: Apache-2.0
"""``MegaBatchMarginLoss``: a margin for each pair, and one for its hardest negative in a large batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from sentence_transformers.sentence_transformer import losses
from torch import Tensor
from torch.nn.functional import relu

from pycl.compat._peer import fall_back
from pycl.core.pairs import Pairs, Points
from pycl.engine.extremes import pair_extremes

from ._card import Carded
from ._scores import as_scores, unlike_rows


class MegaBatchMarginLoss(Carded, losses.MegaBatchMarginLoss):
    r"""sentence-transformers' ``MegaBatchMarginLoss``: of all other positives, the one most like the anchor.

    With anchors ``a_i``, positives ``p_j`` and cosines ``s``::

        loss = mean_i [ relu(positive_margin - s(a_i, p_i)) + relu(max_{j != i} s(a_i, p_j) - negative_margin) ]

    Arguments, errors, attributes and value are the library's, with ``use_mini_batched_version`` and without. The
    hardest negatives come from one pass over the pairs, which stores no matrix: ``mini_batch_size`` is for the model
    alone. Half embeddings give a float32 loss there and here; under autocast the library rounds its cosines, this the
    loss alone. Of negatives within rounding of each other, either may be the hardest.

    Shape:
        Two columns of embeddings [B, d]; a scalar.
    """

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        anchors, positives = (torch.cat(parts) for parts in reps[:2])
        if why := unlike_rows([anchors, positives]) or _other_shape(anchors, positives):
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().calculate_loss(reps, labels, with_backward=with_backward))
        loss = as_scores(_margin_loss(self, anchors, positives), anchors)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


def _other_shape(anchors: Tensor, positives: Tensor) -> str:
    return "" if anchors.shape == positives.shape else "positives of another shape than the anchors"


def _margin_loss(loss: Any, anchors: Tensor, positives: Tensor) -> Tensor:
    found = pair_extremes(
        Points(anchors),
        Points(positives),
        negatives=Pairs.NEGATIVE,
        positives=Pairs.POS_SAME_VIEW,  # an anchor's own
        offset=None,
        normalize=True,
    )
    return (relu(loss.positive_margin - found.positive) + relu(found.negative - loss.negative_margin)).mean()
