# SPDX-License-Identifier: Apache-2.0
"""KoLeo: points are pushed away from their nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import embedding

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import agree, rows_of_all
from pycl.engine.extremes import pair_extremes
from pycl.engine.reduction import check_reduction, share_of
from pycl.functional._common import check_features, unit
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack

EPS = 1e-8


@loss()
def koleo(x: Tensor, *, reduction: str = "mean", **options: Unpack[Options]) -> Tensor:
    r"""Kozachenko-Leonenko regulariser: minus the logarithm of the distance to the nearest neighbour.

    With u the unit vectors and n(i) the other point with the largest cosine to ``u_i``::

        term_i = -log( |u_i - u_n(i) + eps| + eps ),    eps = 1e-8

    The gradient flows through both points of a distance, as in lightly. Distances are those of differences, so that
    near duplicates keep their digits; of two equal points the gradient is as large as 1 / eps, which float16 does not
    hold. Of several nearest neighbours the first is taken. A single point has none and gives 0 with zero gradient.

    Args:
        x: ``[N, d]``; float64, float32, bfloat16 or float16.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`. The points of a group are
            gathered, also for a ``Ring``.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point.
        ValueError: not ``[N, d]``, an empty batch, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Sablayrolles et al., "Spreading vectors for similarity search", arXiv 1806.03198, equation 2; DINOv2, arXiv
    2304.07193. Values are those of lightly's ``KoLeoLoss``, which normalises with ``max(norm, 1e-8)``, here 1e-12.
    """
    check_reduction(reduction)
    check_features(x=x)
    everyone = agree(
        options["group"],
        x.device,
        [x.shape[0]],
        operator="koleo",
        reduction=reduction,
        dtype=str(x.dtype),
        gradient=x.requires_grad and torch.is_grad_enabled(),
    )
    u = unit(x, options["normalize"])
    nearest = pair_extremes(
        Points(u.detach()),
        negatives=Pairs.OTHERS,
        positives=Pairs.NONE,
        group=options["group"],
        backend=options["backend"],
    ).negative_index
    # as in similarity_topk, sums into rows that several have chosen come in one order
    distance = torch.linalg.vector_norm(u - embedding(nearest.clamp_min(0), rows_of_all(u, everyone)) + EPS, dim=1)
    terms = -(distance + EPS).log().masked_fill(nearest < 0, 0)
    return share_of(terms, reduction, everyone)
