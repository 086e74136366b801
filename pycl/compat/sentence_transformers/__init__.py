# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' losses with in-batch negatives, under their own names.

Change ``from sentence_transformers.losses import MultipleNegativesRankingLoss`` to
``from pycl.compat.sentence_transformers import MultipleNegativesRankingLoss``; models, trainers, evaluators and model
cards stay as they are. Every class derives from the library's class of that name and takes over one thing, the loss of
a batch of embeddings.
"""

from __future__ import annotations

try:
    from sentence_transformers.sentence_transformer import losses
except ImportError as error:
    raise ImportError(
        f"pycl.compat.sentence_transformers needs sentence-transformers 6 or newer, which does not import here "
        f"({error}): pip install sentence-transformers"
    ) from error

from pycl.compat.sentence_transformers.guided import CachedGISTEmbedLoss, GISTEmbedLoss
from pycl.compat.sentence_transformers.ranking import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

__all__ = [
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "GISTEmbedLoss",
    "MultipleNegativesRankingLoss",
]

if hasattr(losses, "CachedMultipleNegativesSymmetricRankingLoss"):
    from pycl.compat.sentence_transformers.deprecated import (
        CachedMultipleNegativesSymmetricRankingLoss,
        MultipleNegativesSymmetricRankingLoss,
    )

    __all__ += ["CachedMultipleNegativesSymmetricRankingLoss", "MultipleNegativesSymmetricRankingLoss"]
