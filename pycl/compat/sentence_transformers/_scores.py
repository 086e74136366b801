# SPDX-License-Identifier: Apache-2.0
"""What losses on sentence-transformers' matrices of scores share: which embeddings they take, the dtype they give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pycl.compat._common import as_input


def unlike_rows(embeddings: Sequence[Tensor]) -> str:
    """Why columns of embeddings are not what the engine takes, or nothing; their lengths are not compared."""
    first = embeddings[0]
    if first.dim() != 2 or first.numel() == 0 or not first.is_floating_point():
        return "embeddings that are not [B, d] numbers"
    if any(x.layout != torch.strided for x in embeddings):
        return "embeddings that are sparse tensors"
    if any(x.dtype != first.dtype for x in embeddings):
        return "embeddings of several types"
    return ""


def as_scores(loss: Tensor, embeddings: Tensor) -> Tensor:
    """A loss in the dtype of the library's scores: float32 of half embeddings, and autocast's own where that is on."""
    return as_input(loss, embeddings, "product") if torch.is_autocast_enabled(embeddings.device.type) else loss
