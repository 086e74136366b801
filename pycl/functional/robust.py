# SPDX-License-Identifier: Apache-2.0
"""Robust InfoNCE, which gives noisy pairs less weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import agree
from pycl.engine.reduction import check_reduction, share_of
from pycl.engine.reductions import pair_stats
from pycl.functional._common import Scalar, check_matched, check_number, to_logit_scale
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def robust_info_nce(
    query: Tensor,
    key: Tensor,
    *,
    q: float = 0.5,
    lam: float = 0.01,
    temperature: Scalar = 0.1,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""RINCE: InfoNCE between exponents q = 0 (InfoNCE itself) and q = 1 (robust to wrong positives).

    With ``s_ij = <q_i, k_j> / temperature``::

        term_i = ( (lam sum_j exp s_ij)^q - (exp s_ii)^q ) / q

    As q goes to 0 this becomes InfoNCE plus log lam. The difference is taken where it loses no digits, but the value
    is of the order ``exp(q / temperature)``, and is infinite where the dtype has no such number.

    Args:
        query: ``[N, d]``; float64, float32, bfloat16 or float16.
        key: ``[N, d]``; row i is the positive of query i, all rows are candidates.
        q: the exponent, above 0 and at most 1.
        lam: the weight of the candidates, positive.
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: inputs that are not floating point, a q or lam that is no number.
        ValueError: differing shapes or devices, an empty batch, q, lam or a temperature out of range, an unknown
            reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Chuang et al., "Robust Contrastive Learning against Noisy Views", arXiv 2201.04309, equation 5, one direction. The
    code for SimCLR has the candidates of both views beside it, that for MoCo v3 counts the positive twice and
    multiplies by 2 temperature; here the candidates are all keys, once.
    """
    check_reduction(reduction)
    q = check_number("q", q, math.ulp(0.0), math.nextafter(1.0, 2.0))
    lam = check_number("lam", lam, math.ulp(0.0), math.inf)
    scale = to_logit_scale(temperature)
    check_matched(query=query, key=key)
    everyone = agree(
        options["group"], query.device, [query.shape[0]], operator="robust_info_nce", q=q, lam=lam, reduction=reduction
    )
    stats = pair_stats(
        Points(query),
        Points(key),
        scale,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        offset=None,
        **options,
    )
    candidates, positive = q * (stats.lse + math.log(lam)), q * stats.pos_sum
    gap = candidates - positive
    above, below = gap.clamp_min(0), gap.clamp_max(0)  # the branch that is not taken must not overflow
    terms = torch.where(gap > 0, -candidates.exp() * torch.expm1(-above), positive.exp() * torch.expm1(below)) / q
    return share_of(terms, reduction, everyone)
