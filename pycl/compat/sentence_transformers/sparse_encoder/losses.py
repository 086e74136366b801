# SPDX-License-Identifier: Apache-2.0
"""Everything of ``sentence_transformers.sparse_encoder.losses``, with the in-batch negatives on pycl's engine.

``SpladeLoss`` and ``CachedSpladeLoss`` are the library's and take :class:`SparseMultipleNegativesRankingLoss` as their
loss; ``CSRLoss`` makes one where it is given none. Models of sparse encoders give dense embeddings [B, vocabulary].
"""

from __future__ import annotations

from functools import update_wrapper
from typing import Any

from sentence_transformers.sparse_encoder import losses
from torch import nn

from pycl.compat._peer import forward_names
from pycl.compat.sentence_transformers._card import Carded
from pycl.compat.sentence_transformers.ranking import MultipleNegativesRankingLoss

__all__ = ["CSRLoss", "SparseMultipleNegativesRankingLoss"]


class SparseMultipleNegativesRankingLoss(losses.SparseMultipleNegativesRankingLoss, MultipleNegativesRankingLoss):
    """sentence-transformers' class of that name: ``MultipleNegativesRankingLoss`` of dot products with ``scale=1``.

    It is the loss of ``SpladeLoss``, ``CachedSpladeLoss`` and ``CSRLoss``, which call it with embeddings; alone it
    raises the library's AttributeError. Embeddings that are sparse tensors it takes no more than the library does.
    """


class CSRLoss(Carded, losses.CSRLoss):
    """sentence-transformers' ``CSRLoss``, whose own loss is :class:`SparseMultipleNegativesRankingLoss`.

    The reconstruction, and a ``loss`` that is given, are as they are.
    """

    def __init__(self, model: Any, loss: nn.Module | None = None, *args: Any, **options: Any) -> None:
        super().__init__(model, SparseMultipleNegativesRankingLoss(model) if loss is None else loss, *args, **options)


update_wrapper(CSRLoss.__init__, losses.CSRLoss.__init__)

__getattr__, __dir__ = forward_names(__name__, losses.__name__, "sentence-transformers")
