# SPDX-License-Identifier: Apache-2.0
"""Which pairs of points a statistic runs over: the five pair classes, and points with their attributes."""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

from torch import Tensor


class Pairs(IntFlag):
    """The class of a pair (anchor i, candidate j); unions of classes are pair sets.

    ====================  ===============================================
    ``SELF``              the same point (position ``i + offset == j``)
    ``POS_SAME_VIEW``     same id, same view, not itself
    ``POS_OTHER_VIEW``    same id, other view
    ``NEG_SAME_VIEW``     other id, same view
    ``NEG_OTHER_VIEW``    other id, other view
    ====================  ===============================================

    Every pair belongs to exactly one class, so ``Pairs.OTHERS & ~Pairs.POS_SAME_VIEW`` means what it says.
    """

    NONE = 0
    SELF = 1
    POS_SAME_VIEW = 2
    POS_OTHER_VIEW = 4
    NEG_SAME_VIEW = 8
    NEG_OTHER_VIEW = 16
    POSITIVE = POS_SAME_VIEW | POS_OTHER_VIEW
    NEGATIVE = NEG_SAME_VIEW | NEG_OTHER_VIEW
    OTHERS = POSITIVE | NEGATIVE
    ALL = SELF | OTHERS


class Points(NamedTuple):
    """Embeddings with the integers that decide the class of every pair.

    Attributes:
        z: embeddings ``[n, d]``, floating point.
        ids: int64 ``[n]``, instance numbers or class labels; ``None`` numbers the instances.
        views: int64 ``[n]``, augmentation or modality of each point; ``None`` means one view.
        n_views: of points without ids and views: how many views ``z`` holds, one after the other, each of the same
            ``n / n_views`` instances in the same order.
    """

    z: Tensor
    ids: Tensor | None = None
    views: Tensor | None = None
    n_views: int = 1
