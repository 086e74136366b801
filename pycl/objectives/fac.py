# SPDX-License-Identifier: Apache-2.0
"""FAC: matched points of two views of a scene, and the cross-format momentum contrast of its released code."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group, of_the_batch
from pycl.engine.reduction import share_of
from pycl.engine.reductions import agreed_stats
from pycl.engine.views import check_labels
from pycl.functional import info_nce
from pycl.functional._common import Scalar, check_features, check_matched, to_logit_scale, unit


@of_the_batch
def point_info_nce(
    a: Tensor,
    b: Tensor,
    segments: Tensor | None = None,
    *,
    temperature: Scalar = 0.1,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE over matched points, or over the segments they belong to.

    With ``s_ij = <u_i, w_j> / temperature`` of the unit rows of a and b, and S(i) the points of i's segment, i among
    them; without ``segments`` i alone::

        value = mean_i ( log sum_j exp s_ij  -  mean_{j in S(i)} s_ij )

    Args:
        a, b: ``[P, d]``; row i of both is one point of the scene.
        segments: integers ``[P]``; points with equal numbers are positives of each other. None: each is its own.
        temperature: positive number or 0-d tensor.
        group: ranks that share the batch, each with points of its own: see :mod:`pycl.distributed`. Segments with equal
            numbers are one segment, whichever the rank.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: inputs that are not floating point, segments that are not integers.
        ValueError: differing shapes or devices, no points, a temperature that is not positive, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Liu et al., "FAC: 3D Representation Learning via Foreground Aware Feature Contrast", arXiv 2303.06388. The loss of
    the paper is not in its released code. This one is our reading of it: InfoNCE over matched points (Xie et al.,
    "PointContrast", arXiv 2007.10985) with foreground segments as the classes of SupCon (arXiv 2004.11362, equation 2).
    Segments without sampling of points and without the paper's Siamese correspondence.
    """
    check_matched(a=a, b=b)
    if segments is None:
        return info_nce(a, b, temperature=temperature, group=group, backend=backend)
    segments = check_labels(segments, len(a), a, "segments")
    stats, everyone = agreed_stats(
        Points(a, segments),
        Points(b, segments.clone()),  # torch.compile takes no tensor twice
        to_logit_scale(temperature),
        denominator=Pairs.ALL,
        positives=Pairs.POSITIVE,
        offset=None,
        normalize=True,
        group=group,
        backend=backend,
    )
    return share_of(stats.lse - stats.pos_sum / stats.pos_count, "mean", everyone)


def moco_cross_format(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    queue1: Tensor,
    queue2: Tensor,
    *,
    temperature: Scalar = 0.1,
    backend: str | None = None,
) -> Tensor:
    r"""Momentum contrast within and across two formats of a scene, such as points and voxels.

    With CE(q, k, Q) the mean cross entropy of the own key among it and a queue, :func:`pycl.functional.info_nce` with
    ``negatives``::

        value = ( CE(q1, k1, queue1) + CE(q2, k2, queue2)  +  CE(q1, k2, queue2) + CE(q2, k1, queue1) ) / 4

    Both queries meet a queue in one sweep.

    Args:
        q1, q2: ``[N, d]``, the queries of both formats; row i of all four is one scene.
        k1, k2: ``[N, d]``, constant.
        queue1: ``[K, d]``, constant; keys of the first format.
        queue2: ``[K', d]``, constant; keys of the second format.
        temperature: positive number or 0-d tensor.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: shapes or devices that do not fit, an empty batch or queue, a temperature that is not positive, an
            unknown backend.
        RuntimeError: the backend asked for is not built.

    The loss in the released code of FAC, arXiv 2303.06388, after Zhang et al., "Self-Supervised Pretraining of 3D
    Features on any Point-Cloud", arXiv 2101.02691. The code weights each term by 0.5, twice the mean here, and lets a
    gradient into keys that were not detached.
    """
    for name, x in (("k1", k1), ("q2", q2), ("k2", k2)):
        check_matched(**{"q1": q1, name: x})
    check_features(q1=q1, queue1=queue1, queue2=queue2)
    queries = unit(torch.cat([q1, q2]))  # once for both: a zero row's gradients, added in float16, leave its range
    of_queues = [
        info_nce(
            queries,
            unit(key.detach()).repeat(2, 1),
            unit(queue.detach()),
            temperature=temperature,
            normalize=False,
            group="local",
            backend=backend,
        )
        for key, queue in ((k1, queue1), (k2, queue2))
    ]
    return (of_queues[0] + of_queues[1]) / 2
