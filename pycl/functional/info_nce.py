# SPDX-License-Identifier: Apache-2.0
"""InfoNCE between queries and keys, in-batch, with a set of negatives or with hard negatives of each query's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.engine.own import own_logits
from pycl.engine.reduction import check_reduction, reduce, share_of
from pycl.engine.reductions import agreed_stats, pair_cross_entropy
from pycl.functional._common import Scalar, check_matched, check_negatives, to_logit_scale, unit
from pycl.functional._options import Options, loss
from pycl.functional._smoothing import check_smoothing, product_means, product_sums

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: Scalar = 0.1,
    symmetric: bool = False,
    in_batch: bool = False,
    reduction: str = "mean",
    label_smoothing: float = 0,  # torch.compile(dynamic=True) makes a symbol of 0.0, and compiles twice
    **options: Unpack[Options],
) -> Tensor:
    r"""InfoNCE: pick the own key among the candidates.

    With ``s_ij = <q_i, k_j> / temperature``, ``n_ij = <q_i, negative_j> / temperature`` of M shared negatives, or
    ``n_ij = <q_i, negative_ij> / temperature`` of each query's own::

        negatives None:      term_i = log sum_j exp s_ij                        -  s_ii
        negatives given:     term_i = log( exp s_ii      + sum_j exp n_ij )     -  s_ii
        and in_batch=True:   term_i = log( sum_j exp s_ij + sum_j exp n_ij )    -  s_ii

    Without ``negatives`` the other keys of the batch are the negatives. With them (a queue, a memory bank, mined hard
    negatives) the candidates are the own key and the negatives **only**, as in the package ``info-nce-pytorch`` and in
    MoCo, unless ``in_batch=True`` keeps the other keys. ``symmetric=True`` averages query-to-key and key-to-query.

    ``label_smoothing`` e takes, as torch's cross entropy does, the targets (1 - e) on the own key and e spread evenly
    over all n candidates, the own key too: ``term_i + e (s_ii - mean of the logits of all n candidates)``.

    Args:
        query: ``[N, d]``; float64, float32, bfloat16 or float16.
        key: ``[N, d]``; row i is the positive of query i.
        negatives: ``[M, d]``, shared by all queries; ``[N, M, d]``, of each query's own; or None.
        temperature: positive number or 0-d tensor.
        symmetric: average both directions; only without ``negatives`` and ``in_batch``.
        in_batch: beside ``negatives``, the other keys are candidates, too. Without them they always are.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: a number from 0 to 1.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`. With a group the keys and
            the shared negatives are those of all ranks.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch, negatives that are neither ``[M, d]`` nor ``[N, M, d]``
            with M >= 1, ``symmetric`` with negatives or ``in_batch``, a temperature that is not positive, a label
            smoothing outside of 0 to 1, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748, equation 4;
    with a queue: He et al., "Momentum Contrast", arXiv 1911.05722, equation 1; with hard negatives beside those of the
    batch: Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", arXiv 2004.04906, equation 2.
    """
    check_reduction(reduction)
    smoothing = check_smoothing(label_smoothing)
    scale = to_logit_scale(temperature)
    check_matched(query=query, key=key)
    if symmetric and (in_batch or negatives is not None):
        raise ValueError(
            "symmetric=True needs negatives=None and in_batch=False: negatives belong to the queries only, got "
            f"negatives={'None' if negatives is None else 'a tensor'} and in_batch={in_batch}"
        )
    own = negatives is not None and check_negatives(query=query, negatives=negatives)
    if negatives is None or (in_batch and not own):
        # a candidate behind the keys has the number of no query
        candidates = key if negatives is None else torch.cat([key, negatives])
        value = pair_cross_entropy(
            Points(query),
            Points(candidates),
            scale,
            denominator=Pairs.OTHERS,
            positives=Pairs.POSITIVE,
            offset=None,
            sides="both" if symmetric else "rows",
            reduction=reduction,
            **options,
        )
    elif own:
        value = _with_own_negatives(query, key, negatives, scale, in_batch, reduction, options)
    else:
        value = _with_shared_negatives(query, key, negatives, scale, reduction, options)
    if smoothing:
        above = _above_mean(query, key, negatives, scale, symmetric, in_batch, options)
        value = value + smoothing * reduce(above, reduction, options["group"])
    return value


def _with_shared_negatives(
    query: Tensor, key: Tensor, negatives: Tensor, scale: Scalar, reduction: str, options: Options
) -> Tensor:
    """The own key against the negatives of all queries."""
    others, everyone = agreed_stats(
        Points(query),
        Points(negatives),
        scale,
        denominator=Pairs.OTHERS,
        offset=None,
        reduction=reduction,
        **options,
    )
    return share_of(-logsigmoid(_own_key(query, key, scale, options) - others.lse), reduction, everyone)


def _with_own_negatives(
    query: Tensor, key: Tensor, negatives: Tensor, scale: Scalar, in_batch: bool, reduction: str, options: Options
) -> Tensor:
    """The own key against negatives of each query's own, and with ``in_batch`` against the other keys, too."""
    hard = own_logits(Points(query), negatives, scale, normalize=options["normalize"]).logsumexp(1)
    if not in_batch:
        registry.choose(options["backend"], query.device.type, query.dtype)  # nothing runs on it, but it has to be one
        return reduce(-logsigmoid(_own_key(query, key, scale, options) - hard), reduction, options["group"])
    batch, everyone = agreed_stats(
        Points(query),
        Points(key),
        scale,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        offset=None,
        reduction=reduction,
        **options,
    )
    return share_of(torch.logaddexp(batch.lse, hard) - batch.pos_sum, reduction, everyone)


def _own_key(query: Tensor, key: Tensor, scale: Scalar, options: Options) -> Tensor:
    return scale * (unit(query, options["normalize"]) * unit(key, options["normalize"])).sum(1)


def _above_mean(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    scale: Scalar,
    symmetric: bool,
    in_batch: bool,
    options: Options,
) -> Tensor:
    """By how much the logit of the own key exceeds the mean of those of all candidates, [N]."""
    normalize, where = options["normalize"], (options["group"], options["backend"])
    q, k = unit(query, normalize), unit(key, normalize)
    own = (q * k).sum(1)
    if symmetric:
        return scale * (own - (product_means(q, k, *where) + product_means(k, q, *where)) / 2)
    shared = [k] if negatives is None or in_batch else []
    total, n = (torch.zeros_like(own), 0) if shared else (own, 1)
    if negatives is not None and negatives.dim() == 3:
        total = total + own_logits(Points(query), negatives, normalize=normalize).sum(1)
        n += negatives.shape[1]
    elif negatives is not None:
        shared.append(unit(negatives, normalize))
    if shared:
        sums, count = product_sums(q, torch.cat(shared), *where)
        total, n = total + sums, n + count
    return scale * (own - total / n)
