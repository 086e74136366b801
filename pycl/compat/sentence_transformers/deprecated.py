# SPDX-License-Identifier: Apache-2.0
"""What sentence-transformers has deprecated and not yet removed."""

from __future__ import annotations

import warnings
from typing import Any

from sentence_transformers.sentence_transformer import losses

from pycl.compat.sentence_transformers.ranking import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

with warnings.catch_warnings():  # the library warns where these are derived from, too
    warnings.simplefilter("ignore", DeprecationWarning)

    class MultipleNegativesSymmetricRankingLoss(
        losses.MultipleNegativesSymmetricRankingLoss, MultipleNegativesRankingLoss
    ):
        """``MultipleNegativesRankingLoss`` with ``query_to_doc`` and ``doc_to_query``, ``per_direction``.

        Warns as the library's class does.
        """

        def __new__(cls, *args: Any, **options: Any) -> Any:
            warnings.warn(cls.__deprecated__, DeprecationWarning, stacklevel=2)
            return super().__new__(cls)

    class CachedMultipleNegativesSymmetricRankingLoss(
        losses.CachedMultipleNegativesSymmetricRankingLoss, CachedMultipleNegativesRankingLoss
    ):
        """``CachedMultipleNegativesRankingLoss`` with ``query_to_doc`` and ``doc_to_query``, ``per_direction``.

        Warns as the library's class does.
        """

        def __new__(cls, *args: Any, **options: Any) -> Any:
            warnings.warn(cls.__deprecated__, DeprecationWarning, stacklevel=2)
            return super().__new__(cls)
