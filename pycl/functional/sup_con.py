# SPDX-License-Identifier: Apache-2.0
"""Supervised contrastive learning, both forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pycl.core.pairs import Pairs
from pycl.engine.reduction import by_view, check_reduction, share_of
from pycl.engine.reductions import agreed_stats
from pycl.engine.validation import check_choice
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, to_logit_scale
from pycl.functional._options import Options, loss

FORMS = ("out", "in")

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def sup_con(
    views: Views,
    labels: Tensor,
    *,
    temperature: Scalar = 0.07,
    form: str = "out",
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Supervised contrastive loss: the points of one class attract each other.

    With ``s_ij = <u_i, u_j> / temperature`` over all ``V * N`` points, ``P(i)`` the other points of i's class::

        form="out":  term_i = log sum_{j != i} exp s_ij  -  mean_{p in P(i)} s_ip
        form="in":   term_i = log sum_{j != i} exp s_ij  -  log mean_{p in P(i)} exp s_ip

    The mean runs over **all** anchors; an anchor without positives (a class met once, which takes a single view)
    contributes 0 and still counts, as in the authors' code. (pytorch-metric-learning leaves such anchors out of the
    mean.) The authors' factor temperature / base_temperature is 1 here.

    Args:
        views: ``[V, N, d]``, or V tensors ``[N, d]``; one view is enough here; float64, float32, bfloat16 or float16.
        labels: integers ``[N]``, one class per instance.
        temperature: positive number or 0-d tensor.
        form: ``"out"`` (mean of logarithms) or ``"in"`` (logarithm of the mean).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[V, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point, labels that are not integers.
        ValueError: no view, differing shapes, an empty batch, labels of another length or device, a temperature
            that is not positive, an unknown form, reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Khosla et al., "Supervised Contrastive Learning", arXiv 2004.11362, equations 2 ("out") and 3 ("in").
    """
    check_reduction(reduction)
    check_choice("form", form, FORMS)
    scale = to_logit_scale(temperature)
    if labels is None:
        raise TypeError("labels must be an integer tensor, got None")
    points, n_views = stack_views(views, labels)
    stats, everyone = agreed_stats(
        points,
        None,
        scale,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        reduction=reduction,
        form=form,
        **options,
    )
    count = stats.pos_count
    mean_positive = stats.pos_sum / count.clamp_min(1) if form == "out" else stats.pos_lse - count.log()
    terms = (stats.lse - mean_positive).masked_fill(count == 0, 0.0)
    return by_view(share_of(terms, reduction, everyone), n_views)
