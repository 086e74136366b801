# SPDX-License-Identifier: Apache-2.0
"""InfoNCE without false negatives: candidates that look more like the query than its own key are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.core.problem import accumulation_dtype
from pycl.engine.modifiers import Limit
from pycl.engine.own import own_logits
from pycl.engine.reduction import check_reduction, reduce
from pycl.engine.reductions import pair_cross_entropy, pair_stats
from pycl.functional._common import (
    Scalar,
    as_scalar,
    check_matched,
    check_negatives,
    check_together,
    to_logit_scale,
    unit,
    widen,
)
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def guided_info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: Scalar = 0.05,
    margin: Scalar | None = None,
    guide_query: Tensor | None = None,
    guide_key: Tensor | None = None,
    guide_negatives: Tensor | None = None,
    query_negatives: bool = False,
    key_negatives: bool = False,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""InfoNCE over candidates of up to four kinds, of which a margin leaves out the false negatives.

    With ``s(x, y) = <x, y> / temperature``, the candidates of row i are::

        s(q_i, k_i)                 the own key
        s(q_i, k_j), j != i         the other keys
        s(q_i, n_j) or s(q_i, n_ij) negatives, of all queries or of each query's own
        s(q_i, q_j), j != i         the other queries, with query_negatives=True
        s(k_i, k_j), j != i         what the own key is like, with key_negatives=True

        term_i = log sum exp over the candidates  -  s(q_i, k_i)

    With a ``margin`` a negative counts only if its cosine is at most ``<q_i, k_i> + margin``, that of the positive plus
    the margin. With guides, embeddings of another model, both cosines are the guide's. The positive always counts. A
    margin of 0 leaves out what is more like the query than its own key, a negative one what comes near it.
    sentence-transformers' ``GISTEmbedLoss`` counts its ``margin`` the other way round: there it is ``-margin`` with the
    strategy "absolute".

    Cosines are compared in the dtype of the loss and with room for their rounding, ``(4 + sqrt(d))`` units in the last
    place of 1, so that a duplicate of the positive is no more like the query than the positive is, and counts.

    Args:
        query: ``[N, d]``; float64, float32, bfloat16 or float16.
        key: ``[N, d]``; row i is the positive of query i.
        negatives: ``[M, d]``, shared by all queries; ``[N, M, d]``, of each query's own; or None.
        temperature: positive number or 0-d tensor.
        margin: a number, which is a constant; None leaves nothing out, whatever the guides are.
        guide_query, guide_key: ``[N, e]``, both or neither, of any width e; constants, always normalised.
        guide_negatives: ``[M, e]`` or ``[N, M, e]``, the guide's embeddings of ``negatives``.
        query_negatives: take the other queries as candidates, too.
        key_negatives: take what the own key is like as candidates, too.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, of the queries, keys and negatives, ``group`` and ``backend``:
            :class:`pycl.functional.Options`. Without normalisation products as they are take the place of cosines.
            With a group the candidates, shared negatives too, are those of all ranks.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: embeddings that are not floating point, a margin that is no number.
        ValueError: differing shapes or devices, an empty batch, negatives that are neither ``[M, d]`` nor ``[N, M, d]``
            with M >= 1, one guide without the other, guides of keys but not of the negatives or the other way round, a
            margin that is NaN, a temperature that is not positive, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Solatorio, "GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning", arXiv
    2402.16829; without a guide, with all four kinds and a margin of 0.1, Zhang et al., "Qwen3 Embedding: Advancing Text
    Embedding and Reranking Through Foundation Models", arXiv 2506.05176.
    """
    check_reduction(reduction)
    scale = to_logit_scale(temperature)
    check_matched(query=query, key=key)
    if negatives is not None:
        check_negatives(query=query, negatives=negatives)
    guide = _guide(query, negatives, guide_query, guide_key, guide_negatives)
    if margin is not None and guide is None:  # kernels round unit vectors to a half type: too coarse for a limit
        query, key, negatives = widen(query), widen(key), None if negatives is None else widen(negatives)
    x = _Compared.of(query, key, negatives)
    sieve = _sieve(x, guide, scale, margin, options["normalize"])
    points = Points(x.query), Points(x.candidates), scale
    sets: Any = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE, "offset": None}
    modifiers = sieve.modifiers("query", "candidates")
    if x.own is None and not query_negatives and not key_negatives:
        return pair_cross_entropy(*points, **sets, reduction=reduction, modifiers=modifiers, **options)
    stats = pair_stats(*points, **sets, modifiers=modifiers, **options)
    blocks = [stats.lse[:, None]]
    if x.own is not None:
        blocks.append(sieve.of_own(own_logits(Points(query), x.own, scale, normalize=options["normalize"])))
    others = {"query": query_negatives, "key": key_negatives}
    for name, z in (("query", query), ("key", key)):
        if others[name]:
            modifiers = sieve.modifiers(name, name)
            found = pair_stats(Points(z), None, scale, denominator=Pairs.OTHERS, modifiers=modifiers, **options)
            blocks.append(found.lse[:, None])
    return reduce(torch.cat(blocks, 1).logsumexp(1) - stats.pos_sum, reduction, options["group"])


class _Compared(NamedTuple):
    """What is compared, of the model or of the guide."""

    query: Tensor
    key: Tensor
    candidates: Tensor  # of all queries: the keys, and behind them negatives, which have the number of no query
    own: Tensor | None  # negatives of each query's own

    @classmethod
    def of(cls, query: Tensor, key: Tensor, negatives: Tensor | None) -> _Compared:
        if negatives is None or negatives.dim() == 3:
            return cls(query, key, key, negatives)
        return cls(query, key, torch.cat([key, negatives]), None)


class _Sieve(NamedTuple):
    """Which negatives count: those whose logit, or whose cosine of the guide, is at most the limit of their row."""

    limits: Tensor | None
    guide: _Compared | None

    def modifiers(self, rows: str, cols: str) -> tuple[Limit, ...]:
        """For a block of pairs."""
        if self.limits is None:
            return ()
        if self.guide is None:
            return (Limit(self.limits),)
        return (Limit(self.limits, guide=(getattr(self.guide, rows), getattr(self.guide, cols))),)

    def of_own(self, logits: Tensor) -> Tensor:
        """The logits with negatives of each query's own [N, M] where those count, elsewhere -inf."""
        if self.limits is None:
            return logits
        seen = logits.detach()
        if self.guide is not None:
            assert self.guide.own is not None
            seen = own_logits(Points(self.guide.query), self.guide.own, normalize=True)
        return logits.masked_fill(seen > self.limits[:, None], -torch.inf)


def _sieve(x: _Compared, guide: _Compared | None, scale: Scalar, margin: Scalar | None, normalize: bool) -> _Sieve:
    """The limit of a row: its positive and the margin, with room for the rounding of equal products."""
    if margin is None:
        return _Sieve(None, None)
    margin, scale = (t.detach() if isinstance(t, Tensor) else t for t in (as_scalar("margin", margin), scale))
    if margin != margin:
        raise ValueError(f"margin must be None or a number, got {margin}")
    dtype = accumulation_dtype(torch.promote_types(x.query.dtype, x.key.dtype))
    if guide is None:
        q, k = (unit(z.detach(), normalize).to(dtype) for z in (x.query, x.key))
    else:
        guide = _Compared._make(z if z is None else z.detach().to(torch.promote_types(z.dtype, dtype)) for z in guide)
        q, k, candidates = (unit(z).to(dtype) for z in guide[:3])
        guide = guide._replace(query=q, key=k, candidates=candidates)
    size = q.norm(dim=1) * k.norm(dim=1)
    limits = (q * k).sum(1) + margin + (4 + q.shape[1] ** 0.5) * torch.finfo(dtype).eps * size
    return _Sieve(limits if guide is not None else limits * scale, guide)


def _guide(
    query: Tensor,
    negatives: Tensor | None,
    guide_query: Tensor | None,
    guide_key: Tensor | None,
    guide_negatives: Tensor | None,
) -> _Compared | None:
    """The guide's embeddings, of all that is compared or of nothing."""
    if guide_query is None or guide_key is None:
        given = {"guide_query": guide_query, "guide_key": guide_key, "guide_negatives": guide_negatives}
        if names := [name for name, x in given.items() if x is not None]:
            raise ValueError(
                f"guide_query and guide_key must both be given or neither, got {' and '.join(names)} alone"
            )
        return None
    check_matched(guide_query=guide_query, guide_key=guide_key)
    check_together(query=query, guide_query=guide_query)
    if (negatives is None) != (guide_negatives is None):
        missing, there = (
            ("guide_negatives", "negatives") if guide_negatives is None else ("negatives", "guide_negatives")
        )
        raise ValueError(f"with guides {missing} must be given where {there} are, got None")
    if negatives is not None and guide_negatives is not None:
        check_negatives(guide_query=guide_query, guide_negatives=guide_negatives)
        if guide_negatives.shape[:-1] != negatives.shape[:-1]:
            raise ValueError(
                f"guide_negatives must have a row for each of negatives {tuple(negatives.shape)}, got "
                f"{tuple(guide_negatives.shape)}"
            )
    return _Compared.of(guide_query, guide_key, guide_negatives)
