# SPDX-License-Identifier: Apache-2.0
"""``MultipleNegativesRankingLoss`` and its cached form."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor

from pycl.compat._common import all_ranks
from pycl.compat._peer import fall_back
from pycl.engine import pair_cross_entropy, pair_stats
from pycl.pairs import Pairs, Points


class MultipleNegativesRankingLoss(losses.MultipleNegativesRankingLoss):
    r"""sentence-transformers' ``MultipleNegativesRankingLoss``: pick a query's own document among all of the batch.

    With queries ``q_i``, documents ``d_jk`` (k = 0 the positive of query j, the others its hard negatives) and
    ``s(x, y) = scale * similarity_fct(x, y)``, the log-sum-exps that ``directions`` adds to the first one are::

        query_to_doc    a_i = log sum_jk          exp s(q_i, d_jk)
        query_to_query  b_i = log sum_{j != i}    exp s(q_i, q_j)
        doc_to_query    c_i = log sum_j           exp s(d_i0, q_j)
        doc_to_doc      e_i = log sum_{j != i, k} exp s(d_i0, d_jk)

        joint           loss = mean_i [ log(exp a_i + exp b_i + exp c_i + exp e_i) - s(q_i, d_i0) ]
        per_direction   loss = mean_i [ (a_i + c_i) / 2 - s(q_i, d_i0) ]

    Arguments, errors, attributes and value are the library's; no matrix of scores is stored, and queries against
    queries cost half a matrix. With ``gather_across_devices`` on W processes each has its own queries' loss and the
    gradients of all, as in the library. A ``similarity_fct`` other than ``cos_sim`` and ``dot_score`` and a
    ``hardness_mode`` with a positive strength run the library's code. Half embeddings give a float32 loss there and
    here; under autocast the library rounds its scores to the half type and this does not.

    Shape:
        Embeddings [B, d], one tensor for each column of the data set; a scalar.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        if why := _why_not(self, embeddings):
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().compute_loss_from_embeddings(embeddings, labels))
        return _in_batch_loss(self, embeddings)


class CachedMultipleNegativesRankingLoss(losses.CachedMultipleNegativesRankingLoss):
    """sentence-transformers' ``CachedMultipleNegativesRankingLoss``: the same loss with gradient caching.

    Large batches pass through the model in parts. ``mini_batch_size`` is for the model alone: the loss takes the
    batch at once, without a matrix of scores. Everything else is as in :class:`MultipleNegativesRankingLoss`.
    """

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        embeddings = [torch.cat(parts) for parts in reps]
        if why := _why_not(self, embeddings):
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().calculate_loss(reps, labels, with_backward=with_backward))
        loss = _in_batch_loss(self, embeddings)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


def _why_not(loss: Any, embeddings: list[Tensor]) -> str:
    """Why the loss cannot be fused, or nothing."""
    if loss.similarity_fct not in (cos_sim, dot_score):
        return f"similarity_fct={loss.similarity_fct!r}"
    if loss.hardness_mode is not None and loss.hardness_strength > 0:
        return f"hardness_mode={loss.hardness_mode!r}"
    shapes = {(x.shape, x.dtype, x.layout) for x in embeddings}
    if len(embeddings) < 2 or len(shapes) > 1 or embeddings[0].dim() != 2 or embeddings[0].numel() == 0:
        return f"embeddings {[(tuple(x.shape), x.dtype, x.layout) for x in embeddings]}"
    if not embeddings[0].is_floating_point() or embeddings[0].layout != torch.strided:
        return f"embeddings of {embeddings[0].dtype}, {embeddings[0].layout}"
    return ""


def _in_batch_loss(loss: Any, embeddings: list[Tensor]) -> Tensor:
    queries, *documents = embeddings
    n, device = len(queries), queries.device
    group = all_ranks() if loss.gather_across_devices else None
    ids = torch.arange(n, device=device)  # a query and its documents have one id
    if group is not None:
        ids = ids + dist.get_rank() * n
    asked = Points(queries, ids)
    positives = every = Points(documents[0], ids)
    if len(documents) > 1:
        views = torch.arange(len(documents), device=device).repeat_interleave(n)  # the positives' is the queries', 0
        every = Points(torch.cat(documents), ids.repeat(len(documents)), views)
    options: dict[str, Any] = {"normalize": loss.similarity_fct is cos_sim, "group": group}

    sets: dict[str, Any] = {"denominator": Pairs.OTHERS, "positives": Pairs.POS_SAME_VIEW}
    if set(loss.directions) == {"query_to_doc"}:
        options |= {"offset": None, "reduction": "mean"}
        return pair_cross_entropy(asked, every, loss.scale, **sets, **options)
    if "doc_to_query" in loss.directions:
        stats, of_documents = pair_stats(asked, every, loss.scale, offset=None, sides="both", **sets, **options)
        lses = [stats.lse, of_documents.lse[:n]]
    else:
        stats = pair_stats(asked, every, loss.scale, offset=None, **sets, **options)
        lses = [stats.lse]
    if "query_to_query" in loss.directions:
        lses.append(pair_stats(asked, None, loss.scale, denominator=Pairs.NEGATIVE, **options).lse)
    if "doc_to_doc" in loss.directions:
        others = None if every is positives else every
        lses.append(pair_stats(positives, others, loss.scale, denominator=Pairs.NEGATIVE, **options).lse)
    if loss.partition_mode == "joint":
        lse = lses[0] if len(lses) == 1 else torch.stack(lses).logsumexp(0)
    else:
        lse = sum(lses[1:], start=lses[0]) / len(lses)
    return (lse - stats.pos_sum).mean()
