# SPDX-License-Identifier: Apache-2.0
"""InfoNCE between queries and keys, in-batch or against a shared set of negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.core.pairs import Pairs, Points
from pycl.engine.reduction import check_reduction, share_of
from pycl.engine.reductions import agreed_stats, pair_cross_entropy
from pycl.functional._common import Scalar, check_features, check_matched, to_logit_scale, unit
from pycl.functional._options import Options, loss

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
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""InfoNCE: pick the own key among the candidates.

    With ``s_ij = <q_i, k_j> / temperature`` and ``n_ij = <q_i, negative_j> / temperature``::

        negatives None:   term_i = log sum_j exp s_ij                      -  s_ii
        negatives given:  term_i = log( exp s_ii + sum_j exp n_ij )        -  s_ii

    Without ``negatives`` the other keys of the batch are the negatives. With them (a queue, a memory bank) the
    candidates are the own key and the M shared negatives **only**, as in the unpaired mode of the package
    ``info-nce-pytorch`` and in MoCo. ``symmetric=True`` averages query-to-key and key-to-query.

    Args:
        query: ``[N, d]``; float64, float32, bfloat16 or float16.
        key: ``[N, d]``; row i is the positive of query i.
        negatives: ``[M, d]``, shared by all queries, or None. (Negatives of each query's own, ``[N, M, d]``, are
            not supported.)
        temperature: positive number or 0-d tensor.
        symmetric: average both directions; only without ``negatives``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch, negatives that are not ``[M, d]`` with
            M >= 1, ``symmetric`` with negatives, a temperature that is not positive, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748, equation 4;
    with a queue: He et al., "Momentum Contrast", arXiv 1911.05722, equation 1.
    """
    check_reduction(reduction)
    scale = to_logit_scale(temperature)
    check_matched(query=query, key=key)
    if negatives is not None:
        if symmetric:
            raise ValueError("symmetric=True needs negatives=None: shared negatives belong to the queries only")
        if isinstance(negatives, Tensor) and negatives.dim() == 3:
            raise ValueError(
                f"negatives must have shape [M, d], shared by all queries, got {tuple(negatives.shape)}: those of each "
                "query's own make no large matrix, (query[:, None] * negatives).sum(2) beside the positive's logits"
            )
        check_features(query=query, negatives=negatives)
        own = scale * (unit(query, options["normalize"]) * unit(key, options["normalize"])).sum(1)
        others, everyone = agreed_stats(
            Points(query),
            Points(negatives),
            scale,
            denominator=Pairs.OTHERS,
            offset=None,
            reduction=reduction,
            **options,
        )
        return share_of(-logsigmoid(own - others.lse), reduction, everyone)
    return pair_cross_entropy(
        Points(query),
        Points(key),
        scale,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        offset=None,
        sides="both" if symmetric else "rows",
        reduction=reduction,
        **options,
    )
