# SPDX-License-Identifier: Apache-2.0
"""What drop-ins for several libraries share: all ranks as a group, the dtype of the result, swapped prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from pycl.functional._common import widen


def all_ranks() -> dist.ProcessGroup | None:
    """The group of all ranks where there are several, otherwise None."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def as_input(loss: Tensor, embeddings: Tensor) -> Tensor:
    """A loss in the dtype of the embeddings, which plain torch code returns; under autocast that is float32."""
    if loss.dtype == embeddings.dtype or torch.is_autocast_enabled(embeddings.device.type):
        return loss
    return loss.to(embeddings.dtype)


def soft_cross_entropy(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Mean over samples of ``-sum_k codes_k log softmax_k(scores / temperature)``, in at least float32."""
    scores = widen(scores)
    return cross_entropy(scores / temperature, codes.to(scores.dtype))


def swapped_prediction(
    scores: Sequence[Tensor], codes: Sequence[Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """For every crop its cross entropies with the codes of the other crops, summed; codes belong to the first crops.

    A cross entropy is linear in the codes: one with their sum does for all.
    """
    others = [[c for i, c in enumerate(codes) if i != v] for v in range(len(scores))]
    return [loss(crop, reduce(add, wanted)) for crop, wanted in zip(scores, others, strict=True) if wanted]
