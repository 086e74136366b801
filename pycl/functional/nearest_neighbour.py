# SPDX-License-Identifier: Apache-2.0
"""NNCLR: the positive of a key is the nearest neighbour of its query in a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.engine.extremes import pair_extremes
from pycl.engine.reduction import check_reduction
from pycl.engine.reductions import pair_cross_entropy
from pycl.functional._common import Scalar, check_features, check_matched, to_logit_scale
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def nearest_neighbour_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: Scalar = 0.1,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""InfoNCE with the nearest neighbours of the queries in place of the queries.

    With ``n_i`` the row of the queue with the largest cosine to query i, ``s_ij = <n_i, k_j> / temperature``::

        term_i = log sum_j exp s_ij - s_ii

    Only keys and temperature get a gradient. Of equal neighbours the first is taken. The queue should not have the
    batch itself in it. With a group the keys of all ranks are candidates, and every rank searches the queue that it is
    given. Both directions are ``(f(z1, p2, queue) + f(z2, p1, queue)) / 2``.

    Args:
        query: ``[N, d]``, constant; float64, float32, bfloat16 or float16.
        key: ``[N, d]``; row i belongs to query i.
        queue: ``[K, d]``, constant.
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: differing shapes or devices, an empty batch or queue, a temperature that is not positive, an unknown
            reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Dwibedi et al., "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual
    Representations", arXiv 2104.14548, equation 2. Lightly's recipe puts the neighbours into NT-Xent, which has
    candidates of their own view besides: a different loss.
    """
    check_reduction(reduction)
    scale = to_logit_scale(temperature)
    check_matched(query=query, key=key)
    check_features(query=query, queue=queue)
    query, queue = query.detach(), queue.detach()
    nearest = pair_extremes(
        Points(query),
        Points(queue),
        negatives=Pairs.OTHERS,
        positives=Pairs.NONE,
        offset=None,
        normalize=options["normalize"],
        backend=options["backend"],
    )
    lost = nearest.negative.isnan()  # a NaN is nobody's neighbour
    neighbours = queue[nearest.negative_index].masked_fill(lost[:, None], torch.nan)
    return pair_cross_entropy(
        Points(neighbours),
        Points(key),
        scale,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        offset=None,
        reduction=reduction,
        **options,
    )
