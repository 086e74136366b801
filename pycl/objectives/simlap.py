# SPDX-License-Identifier: Apache-2.0
"""SimLAP, formerly Hydra: queries gated for a pair of classes, against the keys of the partner's class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import NORM_EPS
from pycl.distributed.ranks import Group, agree, all_reduce_sum, of_the_batch, rows_of_all
from pycl.engine.modifiers import check_integers
from pycl.engine.reduction import share_of
from pycl.engine.reductions import pair_stats, pair_sum
from pycl.engine.validation import check_choice
from pycl.functional._common import (
    Scalar,
    check_features,
    check_matched,
    no_autocast,
    to_logit_scale,
    unit,
    widen,
)

FORMS = ("query", "cosine")
PER = ("pair", "anchor")
ELEMENTS = 3 << 17  # of a strip of cosines


@of_the_batch
def simlap(
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    partners: tuple[Tensor, Tensor],
    gate: Tensor,
    *,
    temperature: Scalar = 0.1,
    form: str = "query",
    per: str = "pair",
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""SimLAP: a query finds the keys of its partner's class, by the features that both classes share.

    With own label y and partner label y' of a query, its gate g, unit queries u and unit keys k::

        form="query":   l_ij = <g_i g_i u_i, k_j> / temperature
        form="cosine":  l_ij = cos(g_i z_i, g_i k_j) / temperature
        neg_i  = log sum of exp l_ij over the keys j whose label is neither y_i nor y'_i
        term_i = sum of softplus(neg_i - l_ij) over the keys j with the label y'_i
        per="pair":    sum_i term_i / number of all positive pairs
        per="anchor":  mean over all i of term_i / number of i's positives

    A positive meets the negatives, not the other positives. Keys of the own class are in neither set, unless y = y':
    then they are the positives, a query's own key among them. An anchor without positives adds 0 and counts in the mean
    over anchors; without negatives its terms are ``softplus(-inf) = 0``.

    ``"query"`` and ``per="pair"`` are the authors' code since December 2025 (vitookit); ``"cosine"``, of the paper, is
    the older code, which stores ``[N, M, d]``. Their FastSSL has ``per="anchor"``, with 1e-6 added to the numbers of
    positives, and both subtract the mean of a row before ``exp``. No such thing is done here.

    ``"cosine"`` takes two products for each pair, which no backend has: it runs in plain torch, on strips of the matrix
    that the backward computes again, whatever the backend. With a group every rank then holds the keys of all.

    Args:
        query: ``[N, d]``.
        key: ``[M, d]``, with a gradient.
        labels: integers ``[M]``, the class of each key.
        partners: the own and the partner labels of the queries, integers ``[N]`` each.
        gate: ``[N, d]``, as given; the authors' is the sigmoid of a network on the mean embedding of the two labels.
        temperature: positive number or 0-d tensor.
        form: ``"query"`` or ``"cosine"``.
        per: ``"pair"`` or ``"anchor"``.
        group: ranks that share the batch; the keys are those of all ranks.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: embeddings that are not floating point, labels that are not integers, partners that are not a pair.
        ValueError: shapes or devices that do not fit, an empty batch, an unknown form, per or backend, a temperature
            that is not positive.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Wu et al., "Rethinking Positive Pairs in Contrastive Learning", arXiv 2410.18200, the loss of class pairs.
    """
    check_choice("form", form, FORMS)
    check_choice("per", per, PER)
    scale = to_logit_scale(temperature)
    check_matched(query=query, gate=gate)
    check_features(query=query, key=key)
    n, m = len(query), len(key)
    labels = check_integers("labels", labels, key, (m,), f"[{m}], one per key")
    if not isinstance(partners, (tuple, list)) or len(partners) != 2:
        raise TypeError("partners must be a pair of tensors, the own and the partner labels of the queries")
    own, partner = (check_integers("partners", x, query, (n,), f"[{n}] each, one per query") for x in partners)
    everyone = agree(group, query.device, [n, m], operator="simlap", form=form, per=per)
    reduction = "none" if per == "anchor" else "sum"
    g, u, k = widen(gate), unit(query), unit(key)
    if form == "query":
        points = Points(g * g * u, partner, own), Points(k, labels, labels)
        terms, counts = _of_products(*points, scale, reduction, group, backend)
    else:
        registry.choose(backend, query.device.type, query.dtype)  # refuses what is not there
        k, labels = (rows_of_all(x, everyone, 1) for x in (k, labels))
        terms, counts = _of_cosines(g, u, k, labels, own, partner, scale)
        terms = share_of(terms, reduction, everyone)
    if per == "anchor":
        return share_of(terms / counts.clamp_min(1), "mean", everyone)
    n_pairs = all_reduce_sum(counts.sum(), None if everyone is None else everyone.group)
    return terms / n_pairs.clamp_min(1)


def _of_products(
    queries: Points, keys: Points, scale: Scalar, reduction: str, group: Group | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Terms and numbers of positives for ``<x_i, k_j> scale``.

    The class of a pair says it all: a query's id is its partner label and its view the own label, a key's label is
    both. So a positive has the query's id, and a negative neither its id nor its view.
    """
    stats = pair_stats(
        queries,
        keys,
        scale,
        denominator=Pairs.NEG_OTHER_VIEW,
        positives=Pairs.POSITIVE,
        offset=None,
        group=group,
        backend=backend,
    )
    alone = stats.lse == -torch.inf  # a bias of -inf drops all pairs of these
    terms = pair_sum(
        queries,
        keys,
        scale,
        negatives=Pairs.NONE,
        positives=Pairs.POSITIVE,
        row_bias=-stats.lse.masked_fill(alone, torch.inf),
        offset=None,
        reduction=reduction,
        group=group,
        backend=backend,
    )
    return terms, stats.pos_count


def _of_cosines(
    g: Tensor, u: Tensor, k: Tensor, labels: Tensor, own: Tensor, partner: Tensor, scale: Scalar
) -> tuple[Tensor, Tensor]:
    """Terms and numbers of positives for ``cos(g_i u_i, g_i k_j) scale``, in strips that the backward computes again.

    ``<g_i g_i u_i, k_j> / |g_i u_i|`` is one product, and ``|g_i k_j|^2 = <g_i g_i, k_j k_j>`` the other. A cosine does
    not see the length of a gate; with a largest entry of 1 its squares stay within the range.
    """
    peak = g.detach().abs().amax(1, keepdim=True)
    g = g / peak.masked_fill(peak == 0, 1)
    return cast(
        "tuple[Tensor, Tensor]", _InStrips.apply(unit(g * u) * g * scale, g * g, k, k * k, own, partner, labels)
    )


class _InStrips(torch.autograd.Function):
    """``_strip`` over all queries. No strip is kept, and gradients of keys are added as they come."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*args)
        terms = args[0].new_empty(len(args[0]))  # made at once: small parts between strips would tear the heap
        counts = torch.empty_like(terms)
        for i, part in _strips(*args):
            terms[i], counts[i] = _strip(*part)
        ctx.mark_non_differentiable(counts)
        return terms, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_terms: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [torch.zeros_like(x) for x in ctx.saved_tensors[:4]]
        dx, dg2, dk, dk2 = gradients
        for i, part in _strips(*ctx.saved_tensors):
            leaves = [x.detach().requires_grad_() for x in part[:4]]
            with torch.enable_grad():
                terms, _ = _strip(*leaves, *part[4:])
            found = torch.autograd.grad(terms, leaves, d_terms[i])
            for total, of_strip in zip((dx[i], dg2[i], dk, dk2), found, strict=True):
                total += of_strip
        return *gradients, None, None, None


def _strips(
    x: Tensor, g2: Tensor, k: Tensor, k2: Tensor, own: Tensor, partner: Tensor, labels: Tensor
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    size = max(1, ELEMENTS // len(k))
    for start in range(0, len(x), size):
        i = slice(start, start + size)
        yield i, (x[i], g2[i], k, k2, own[i], partner[i], labels)


def _strip(
    x: Tensor, g2: Tensor, k: Tensor, k2: Tensor, own: Tensor, partner: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    with no_autocast(x):
        logits = (x @ k.T) * (g2 @ k2.T).clamp_min(NORM_EPS**2).rsqrt()
    positive = labels == partner[:, None]
    negative = ~positive & (labels != own[:, None])
    alone = ~negative.any(1, keepdim=True)
    neg = logits.masked_fill(~negative & ~alone, -torch.inf).logsumexp(1, keepdim=True)
    margins = -logsigmoid(logits - neg)
    return margins.masked_fill(~positive | alone, 0).sum(1), positive.sum(1)
