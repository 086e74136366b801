# SPDX-License-Identifier: Apache-2.0
"""Which pairs of a batch and its references pytorch-metric-learning would list, said without the list."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycl.compat._peer import find_peer
from pycl.core.pairs import Points
from pycl.engine.views import occurrences


class AllPairs(NamedTuple):
    """In the place of an ``indices_tuple``: all pairs, but for those of a point with itself."""

    offset: int | None  # 0: reference i is anchor i; None: no reference is an anchor


LISTED = (NO_LABELS := "pairs without labels", MINED := "indices_tuple, as from a miner")


class Compared(NamedTuple):
    """Anchors, their references (None: the anchors themselves) and the offset of ``AllPairs``."""

    rows: Points
    cols: Points | None
    offset: int | None

    @property
    def n_pairs(self) -> int:
        m, n = len(self.rows.z), len((self.cols or self.rows).z)
        return m * n - (0 if self.offset is None else min(m, n))


def compared(
    embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
) -> Compared | str:
    """The pairs a loss has to run over, or why they have no short description."""
    if labels is None:
        return NO_LABELS
    if ref_labels is None:
        if len(ref_emb) != len(labels):
            return "ref_emb of another length without ref_labels"
        ref_labels = labels
    shared = ref_labels is labels
    ids, ref_ids = integers(labels, ref_labels)
    if indices_tuple is None:
        pairs: AllPairs | None = AllPairs(0 if shared else None)  # whatever the embeddings are
    else:
        pairs = indices_tuple if isinstance(indices_tuple, AllPairs) else read(indices_tuple, ids, ref_ids)
    if pairs is None:
        return MINED
    if ref_emb is embeddings and shared and pairs.offset == 0:
        return Compared(Points(embeddings, ids), None, 0)
    return Compared(Points(embeddings, ids), Points(ref_emb, ref_ids), pairs.offset)


def integers(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    if labels.is_floating_point() or ref_labels.is_floating_point():
        ids = torch.cat([labels, ref_labels]).unique(return_inverse=True)[1]
        return ids[: len(labels)], ids[len(labels) :]
    return labels.to(torch.int64), ref_labels.to(torch.int64)


def read(indices_tuple: tuple[Tensor, ...], labels: Tensor, ref_labels: Tensor) -> AllPairs | None:
    """``AllPairs`` for a list of pairs that proves to be complete and free of repetitions, as that of
    DistributedLossWrapper; None for all others.
    """
    if len(indices_tuple) != 4:
        return None
    a1, p, a2, n = indices_tuple
    n_alike, n_refs, k = int(occurrences(labels, ref_labels).sum()), len(ref_labels), min(len(labels), len(ref_labels))
    if len(a2) != len(labels) * n_refs - n_alike or len(a1) not in (n_alike, n_alike - k):
        return None
    without_itself = len(a1) != n_alike
    if without_itself and (not torch.equal(labels[:k], ref_labels[:k]) or bool((a1 == p).any())):
        return None
    ascending = all(bool(((i * n_refs + j).diff() > 0).all()) for i, j in ((a1, p), (a2, n)))
    if ascending and torch.equal(labels[a1], ref_labels[p]) and bool((labels[a2] != ref_labels[n]).all()):
        return AllPairs(0 if without_itself else None)
    return None


def written(pairs: AllPairs, labels: Tensor | None, ref_labels: Tensor | None) -> tuple[Tensor, ...]:
    """The list, for the library's own code."""
    listing: Any = find_peer("pytorch_metric_learning.utils.loss_and_miner_utils")
    a1, p, a2, n = listing.get_all_pairs_indices(labels, ref_labels)
    if pairs.offset is not None:
        others = p != a1
        a1, p = a1[others], p[others]
    return a1, p, a2, n


def distinct(anchors: Tensor, others: Tensor, mat: Tensor) -> Tensor:
    """Ascending positions of listed pairs in a matrix, each once."""
    positions = anchors.to(torch.int64) * mat.shape[1] + others
    return torch.unique(positions)  # type: ignore[no-any-return]  # torch's has no types


def lse_by_anchor(scores: Tensor, anchors: Tensor, n: int) -> Tensor:
    """[n] log-sum-exps of the scores that are listed for each anchor, however often; -inf where none is."""
    listed = torch.zeros(n, dtype=torch.bool, device=scores.device).index_fill(0, anchors, True)
    peak = torch.full_like(listed, -torch.inf, dtype=scores.dtype).scatter_reduce(0, anchors, scores.detach(), "amax")
    peak = peak.masked_fill(~listed, 0.0)
    total = torch.zeros_like(peak).index_add(0, anchors, (scores - peak.index_select(0, anchors)).exp())
    return (total.masked_fill(~listed, 1.0).log() + peak).masked_fill(~listed, -torch.inf)
