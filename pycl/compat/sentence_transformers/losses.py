# SPDX-License-Identifier: Apache-2.0
"""Everything of ``sentence_transformers.losses``, with the losses that have in-batch negatives on pycl's engine."""

from __future__ import annotations

from sentence_transformers.sentence_transformer import losses as _theirs

from pycl.compat._peer import forward_names
from pycl.compat.sentence_transformers.guided import CachedGISTEmbedLoss, GISTEmbedLoss
from pycl.compat.sentence_transformers.ranking import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

__all__ = [
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "GISTEmbedLoss",
    "MultipleNegativesRankingLoss",
]

if hasattr(_theirs, "CachedMultipleNegativesSymmetricRankingLoss"):
    from pycl.compat.sentence_transformers.deprecated import (
        CachedMultipleNegativesSymmetricRankingLoss,
        MultipleNegativesSymmetricRankingLoss,
    )

    __all__ += ["CachedMultipleNegativesSymmetricRankingLoss", "MultipleNegativesSymmetricRankingLoss"]

__getattr__, __dir__ = forward_names(__name__, _theirs.__name__, "sentence-transformers")
