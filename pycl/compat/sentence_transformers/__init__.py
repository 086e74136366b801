# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' losses that compare a whole batch, under their own names.

Change ``from sentence_transformers.losses import MultipleNegativesRankingLoss`` to ``from
pycl.compat.sentence_transformers import MultipleNegativesRankingLoss``, or ``from sentence_transformers import losses``
to ``from pycl.compat.sentence_transformers import losses``, or ``sentence_transformers.sparse_encoder`` to
``pycl.compat.sentence_transformers.sparse_encoder``; models, trainers, evaluators and model cards stay as they are.
Every class here derives from the library's class of that name and takes over one thing, the loss of a batch of
embeddings. All other names are the library's.
"""

from __future__ import annotations

from typing import Any

try:
    import sentence_transformers.sentence_transformer.losses  # noqa: F401  # its own error says less
except ImportError as error:
    raise ImportError(
        f"pycl.compat.sentence_transformers needs sentence-transformers 6 or newer, which does not import here "
        f"({error}): pip install sentence-transformers"
    ) from error

from pycl.compat.sentence_transformers import losses
from pycl.compat.sentence_transformers.losses import (
    BatchHardSoftMarginTripletLoss,
    BatchHardTripletLoss,
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    GISTEmbedLoss,
    MegaBatchMarginLoss,
    MultipleNegativesRankingLoss,
)

__all__ = [
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "GISTEmbedLoss",
    "MegaBatchMarginLoss",
    "MultipleNegativesRankingLoss",
    "losses",
]
__all__ += [name for name in losses.__all__ if name not in __all__]


def __getattr__(name: str) -> Any:
    return getattr(losses, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(losses)})
