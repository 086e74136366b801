# SPDX-License-Identifier: Apache-2.0
"""The hardness modes of sentence-transformers' ranking losses: negatives whose scores are raised by what they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.engine.reductions import pair_stats
from pycl.functional._common import unit

MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")


def penalised(
    loss: Any, embeddings: list[Tensor], asked: Points, every: Points, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of the queries' scores with all documents, and their scores with their own.

    A raised score is ``(scale + strength) * s``, and its gradient is that of ``scale * s``: the embeddings' is taken
    times ``scale / (scale + strength)``, that of a learned scale as it is. Own documents are a column for each, not a
    sweep.
    """
    scale, strength = options["logit_scale"], loss.hardness_strength
    query, *documents = (unit(x, options["normalize"]) for x in embeddings)
    similar = [(query * document).sum(1) for document in documents]
    positive, *hard = (scale * s for s in similar)
    if loss.hardness_mode != "in_batch_negatives":
        hard = [scale * s + strength * s.detach() for s in similar[1:]]
    if loss.hardness_mode != "hard_negatives":
        asked, every = (_with_gradient_times(scale / (scale + strength), points) for points in (asked, every))
        options = options | {"logit_scale": scale + strength}
    others = pair_stats(asked, every, denominator=Pairs.NEGATIVE, offset=None, **options).lse
    return torch.stack([positive, *hard, others]).logsumexp(0), positive


def _with_gradient_times(factor: float | Tensor, points: Points) -> Points:
    """The same points, whose embeddings get so much of their gradient."""
    fixed, factor = points.z.detach(), factor.detach() if isinstance(factor, Tensor) else factor
    return points._replace(z=fixed + factor * (points.z - fixed))
