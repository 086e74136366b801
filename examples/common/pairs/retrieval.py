# SPDX-License-Identifier: Apache-2.0
"""Recall at K: how often what belongs to a query is among its K nearest candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl import functional

AT = (1, 5, 10)


def nearest(queries: Tensor, candidates: Tensor, k: int) -> Tensor:
    """Numbers of the k most similar candidates ``[M, k]`` by cosine, the best first; the matrix is never stored."""
    return functional.similarity_topk(queries, candidates, k=k)[1]


def recall(found: Tensor, query_ids: Tensor, candidate_ids: Tensor) -> dict[str, float]:
    """Shares of the queries that have a candidate of their own id among the first K of ``found``: r1, r5, r10."""
    hits = candidate_ids[found] == query_ids.unsqueeze(1)
    return {f"r{k}": hits[:, :k].any(1).double().mean().item() for k in AT}


def embed(function: torch.nn.Module, inputs: Tensor, chunk: int = 512) -> Tensor:
    """The embeddings of all inputs, a chunk at a time."""
    return torch.cat([function(part) for part in inputs.split(chunk)])
