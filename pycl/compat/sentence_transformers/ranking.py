# SPDX-License-Identifier: Apache-2.0
"""``MultipleNegativesRankingLoss`` and its cached form."""

from __future__ import annotations

from functools import update_wrapper
from typing import Any, cast

import torch
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor

from pycl.compat._common import all_ranks
from pycl.compat._peer import fall_back
from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group, instances, together
from pycl.engine.reductions import pair_cross_entropy, pair_stats

from ._card import Carded
from ._gather import replaced
from ._hardness import MODES, penalised
from ._scores import as_scores, unlike_rows


class MultipleNegativesRankingLoss(Carded, losses.MultipleNegativesRankingLoss):
    r"""sentence-transformers' ``MultipleNegativesRankingLoss``: pick a query's own document among all of the batch.

    With queries ``q_i``, documents ``d_jk`` (k = 0 the positive of query j, the others its hard negatives) and
    ``s(x, y) = scale * similarity_fct(x, y)``, the log-sum-exps that ``directions`` adds to the first one are::

        query_to_doc    a_i = log sum_jk          exp s(q_i, d_jk)
        query_to_query  b_i = log sum_{j != i}    exp s(q_i, q_j)
        doc_to_query    c_i = log sum_j           exp s(d_i0, q_j)
        doc_to_doc      e_i = log sum_{j != i, k} exp s(d_i0, d_jk)

        joint           loss = mean_i [ log(exp a_i + exp b_i + exp c_i + exp e_i) - s(q_i, d_i0) ]
        per_direction   loss = mean_i [ (a_i + c_i) / 2 - s(q_i, d_i0) ]

    A ``hardness_mode`` adds ``hardness_strength * similarity_fct(q_i, d_jk)``, which has no gradient, to the scores of
    the negatives in ``a_i`` that it names. Arguments, errors, attributes and value are the library's; no matrix of
    scores is stored, and queries against queries cost half a matrix. With ``gather_across_devices`` on W processes each
    has its own queries' loss, the mean of as many as it has, and the gradients of all, as in the library, whose batches
    must be even. A ``similarity_fct`` other than ``cos_sim`` and ``dot_score``, and a ``scale`` of several entries, run
    the library's code. Half embeddings give a float32 loss there and here. Under autocast the library rounds its
    scores, this the loss alone.

    Shape:
        Embeddings [B, d], one tensor for each column of the data set; a scalar.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        if why := self._pycl_why_not() or _why_not(self, embeddings):
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().compute_loss_from_embeddings(embeddings, labels))
        return _in_batch_loss(self, embeddings)

    def _pycl_why_not(self) -> str:
        return _why_never(self, losses.MultipleNegativesRankingLoss)


class CachedMultipleNegativesRankingLoss(Carded, losses.CachedMultipleNegativesRankingLoss):
    """sentence-transformers' ``CachedMultipleNegativesRankingLoss``: the same loss with gradient caching.

    Large batches pass through the model in parts. ``mini_batch_size`` is for the model alone: the loss takes the
    batch at once, without a matrix of scores. Everything else is as in :class:`MultipleNegativesRankingLoss`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if type(self.loss) is losses.MultipleNegativesRankingLoss:  # which holds the options
            self.loss.__class__ = MultipleNegativesRankingLoss

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        embeddings = [torch.cat(parts) for parts in reps]
        if why := self._pycl_why_not() or _why_not(self, embeddings):
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().calculate_loss(reps, labels, with_backward=with_backward))
        loss = _in_batch_loss(self, embeddings)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def _pycl_why_not(self) -> str:
        return _why_never(self, losses.CachedMultipleNegativesRankingLoss)


update_wrapper(CachedMultipleNegativesRankingLoss.__init__, losses.CachedMultipleNegativesRankingLoss.__init__)


def _why_never(loss: Any, library: type) -> str:
    """Why the loss is not fused whatever it is given, or nothing."""
    if loss.similarity_fct not in (cos_sim, dot_score):
        return f"similarity_fct={getattr(loss.similarity_fct, '__qualname__', type(loss.similarity_fct).__name__)}"
    if isinstance(loss.scale, Tensor) and loss.scale.numel() != 1:
        return "a scale of several entries"
    return replaced(library) if loss.gather_across_devices else ""


def _why_not(loss: Any, embeddings: list[Tensor]) -> str:
    """Why the loss is not fused for what it is given, or nothing."""
    if why := unlike_rows(embeddings):
        return why
    queries, *documents = embeddings
    if not documents:
        return "no documents"
    if all(x.shape == queries.shape for x in documents):
        return ""
    square = len(documents) if _is_hard(loss) or "doc_to_doc" in loss.directions else 1  # columns of one length
    if any(x.shape[k >= square :] != queries.shape[k >= square :] for k, x in enumerate(documents)):
        return "documents of another shape than the queries"
    return ""


def _is_hard(loss: Any) -> bool:
    return loss.hardness_mode in MODES and loss.hardness_strength > 0


def _in_batch_loss(loss: Any, embeddings: list[Tensor]) -> Tensor:
    group = all_ranks() if loss.gather_across_devices else None
    return as_scores(_compared(loss, embeddings, group=group), embeddings[0])


@together
def _compared(loss: Any, embeddings: list[Tensor], *, group: Group | None) -> Tensor:
    queries, *documents = embeddings
    n = len(queries)
    asked, positives = Points(queries), Points(documents[0])  # numbered one by one, over all ranks
    every = positives
    if len(documents) > 1:
        numbers = instances(max(map(len, documents)), queries.device, group)  # a query and its documents have one
        ids = [numbers[: len(x)] for x in documents]
        views = torch.cat([torch.full_like(x, k) for k, x in enumerate(ids)])  # the positives' is the queries', 0
        every = Points(torch.cat(documents), torch.cat(ids), views)
        # not one tensor for both, which dynamo does not take
        asked, positives = asked._replace(ids=numbers[:n]), positives._replace(ids=ids[0])
    scale = loss.scale.reshape(()) if isinstance(loss.scale, Tensor) else loss.scale
    options: dict[str, Any] = {"logit_scale": scale, "normalize": loss.similarity_fct is cos_sim, "group": group}
    sets: dict[str, Any] = {"denominator": Pairs.OTHERS, "positives": Pairs.POS_SAME_VIEW, "offset": None}
    directions = set(loss.directions) - {"query_to_doc"}
    hard = _is_hard(loss)

    if not (directions or hard):
        if group is None:
            return pair_cross_entropy(asked, every, reduction="mean", **sets, **options)
        return pair_cross_entropy(asked, every, **sets, **options).mean()  # of its own queries, however many
    if hard:
        lse, own = penalised(loss, embeddings, asked, every, options)
        lses = [lse]
        if "doc_to_query" in directions:
            lses.append(pair_stats(positives, asked, denominator=Pairs.OTHERS, offset=None, **options).lse)
    elif "doc_to_query" in directions:
        stats, of_documents = pair_stats(asked, every, sides="both", **sets, **options)
        lses, own = [stats.lse, of_documents.lse[:n]], stats.pos_sum
    else:
        stats = pair_stats(asked, every, **sets, **options)
        lses, own = [stats.lse], stats.pos_sum
    if "query_to_query" in directions:
        lses.append(pair_stats(asked, None, denominator=Pairs.NEGATIVE, **options).lse)
    if "doc_to_doc" in directions:
        others = None if every is positives else every
        lses.append(pair_stats(positives, others, denominator=Pairs.NEGATIVE, **options).lse)
    if loss.partition_mode == "joint":
        lse = lses[0] if len(lses) == 1 else torch.stack(lses).logsumexp(0)
    else:
        lse = sum(lses[1:], start=lses[0]) / len(lses)
    return (lse - own).mean()
