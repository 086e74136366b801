# SPDX-License-Identifier: Apache-2.0
"""Everything of ``sentence_transformers.losses``, with the losses that compare a whole batch on pycl's engine."""

from __future__ import annotations

from sentence_transformers.sentence_transformer import losses as _theirs

from pycl.compat._peer import forward_names
from pycl.compat.sentence_transformers.guided import CachedGISTEmbedLoss, GISTEmbedLoss
from pycl.compat.sentence_transformers.margins import MegaBatchMarginLoss
from pycl.compat.sentence_transformers.ranking import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
from pycl.compat.sentence_transformers.triplets import BatchHardSoftMarginTripletLoss, BatchHardTripletLoss

__all__ = [
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "GISTEmbedLoss",
    "MegaBatchMarginLoss",
    "MultipleNegativesRankingLoss",
]

if hasattr(_theirs, "CachedMultipleNegativesSymmetricRankingLoss"):
    from pycl.compat.sentence_transformers.deprecated import (
        CachedMultipleNegativesSymmetricRankingLoss,
        MultipleNegativesSymmetricRankingLoss,
    )

    __all__ += ["CachedMultipleNegativesSymmetricRankingLoss", "MultipleNegativesSymmetricRankingLoss"]

__getattr__, __dir__ = forward_names(__name__, _theirs.__name__, "sentence-transformers")
