# SPDX-License-Identifier: Apache-2.0
"""Decoupled contrastive learning: the positive leaves the denominator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pycl.core.pairs import Pairs
from pycl.distributed.ranks import Agreement, all_reduce_logsumexp
from pycl.engine.reduction import by_view, check_reduction, share_of, zero_if_empty
from pycl.engine.reductions import agreed_stats, pair_cross_entropy
from pycl.engine.views import stack_views
from pycl.functional._common import Scalar, Views, check_positive, check_two_views, to_logit_scale
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss()
def dcl(
    views: Views,
    *,
    temperature: Scalar = 0.1,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Decoupled contrastive loss on two views, both directions averaged.

    With ``s`` the cosine over temperature, anchor i of view a, other view b::

        term_ai = log sum_{j != i} ( exp s(a i, a j) + exp s(a i, b j) )  -  s(a i, b i)

    The mean runs over the ``2N`` anchors, so it averages the two directions as lightly does (the training loop of
    the third-party code raminnakhli/Decoupled-Contrastive-Learning adds them). The loss may be negative. With
    one instance there is no negative: the first term is then 0, and so is its gradient.

    Args:
        views: ``[2, N, d]``, or two tensors ``[N, d]``; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[2, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError: views that are not floating point.
        ValueError: not exactly two views, differing shapes, an empty batch, a temperature that is not positive, an
            unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Yeh et al., "Decoupled Contrastive Learning", arXiv 2110.06848, section 3 (the loss L_DC).
    """
    scale = to_logit_scale(temperature)
    points, n_views = stack_views(views)
    check_two_views("the decoupled loss", n_views)
    terms = pair_cross_entropy(
        points,
        None,
        scale,
        denominator=Pairs.NEGATIVE,
        positives=Pairs.POS_OTHER_VIEW,
        reduction=reduction,
        **options,
    )
    return by_view(terms, n_views)


@loss()
def dclw(
    views: Views,
    *,
    temperature: Scalar = 0.1,
    sigma: Scalar = 0.5,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Decoupled contrastive loss with weighted positives.

    As :func:`dcl`, with the positive of instance i weighted by a negative von Mises-Fisher term::

        term_ai = log sum_{j != i} ( exp s(a i, a j) + exp s(a i, b j) )  -  w_i s(a i, b i)
        w_i     = 2 - N softmax_i( <z1_i, z2_i> / sigma )

    The softmax runs over the batch, so the weights average 1; a weight can be negative. **The weights are
    constants**: no gradient flows through them, as in lightly (the third-party code raminnakhli/
    Decoupled-Contrastive-Learning lets it flow; the paper does not say).

    Args:
        views: ``[2, N, d]``, or two tensors ``[N, d]``; float64, float32, bfloat16 or float16.
        temperature: positive number or 0-d tensor.
        sigma: positive number or 0-d tensor (it receives no gradient).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[2, N]`` with ``"none"``; float32 (float64 for float64 views).

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`dcl`, and for a sigma that is not positive.

    Yeh et al., "Decoupled Contrastive Learning", arXiv 2110.06848, section 3 (the loss L_DCW).
    """
    check_reduction(reduction)
    sigma, scale = check_positive("sigma", sigma), to_logit_scale(temperature)
    points, n_views = stack_views(views)
    check_two_views("the decoupled loss", n_views)
    stats, everyone = agreed_stats(
        points,
        None,
        scale,
        denominator=Pairs.NEGATIVE,
        positives=Pairs.POS_OTHER_VIEW,
        reduction=reduction,
        **options,
    )
    lse, pos = by_view(zero_if_empty(stats.lse), n_views), by_view(stats.pos_sum, n_views)
    weight = (2 - _relative_softmax(pos.detach()[0] / scale / sigma, everyone)).detach()
    return share_of(lse - weight * pos, reduction, everyone)


def _relative_softmax(x: Tensor, everyone: Agreement | None) -> Tensor:
    """``softmax(x)`` over the batch of all ranks, in units of its mean."""
    if everyone is None:
        return x.shape[0] * x.softmax(0)
    return (x - all_reduce_logsumexp(x.logsumexp(0), everyone.group)).exp() * (everyone.n / 2)  # of two views
