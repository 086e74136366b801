# SPDX-License-Identifier: Apache-2.0
"""Image-text losses: the softmax loss of CLIP and the sigmoid loss of SigLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pycl.core.notices import first_time, warn_once
from pycl.core.pairs import Pairs, Points
from pycl.core.tracing import observed
from pycl.engine.reductions import pair_cross_entropy, pair_sum
from pycl.functional._common import Scalar, as_scalar, check_matched, expand_scalar
from pycl.functional._options import Options, loss

UNIT = 0.05  # how far from 1 the norm of a normalised feature may be, in the worst of dtypes

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss(normalize=False)
def clip(
    image: Tensor,
    text: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar | None = None,
    *,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Symmetric cross entropy over image-to-text and text-to-image (CLIP).

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``::

        term_i = ( log sum_j exp l_ij + log sum_j exp l_ji ) / 2  -  l_ii

    Features are taken **as they are given** (``normalize=False``) and ``logit_scale`` multiplies, as in open_clip:
    pass ``log_scale.exp()`` of the learnable log-scale. A constant bias does not change a softmax; it is accepted so
    that a model's parameter stays in the graph (its gradient is zero up to rounding).

    Args:
        image: ``[N, d]``; float64, float32, bfloat16 or float16.
        text: ``[N, d]``; row i belongs to image i.
        logit_scale: number or 0-d tensor.
        logit_bias: number, 0-d tensor or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"`` (both directions of pair i averaged); float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, a logit_scale that is no number.
        ValueError: differing shapes or devices, an empty batch, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020, figure 3.
    """
    check_matched(image=image, text=text)
    look_once(image, text, logit_scale, options["normalize"])
    return pair_cross_entropy(
        Points(image),
        Points(text),
        as_scalar("logit_scale", logit_scale),
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        col_bias=None if logit_bias is None else expand_scalar("logit_bias", logit_bias, text),
        offset=None,
        sides="both",
        reduction=reduction,
        **options,
    )


@loss(normalize=False)
def siglip(
    image: Tensor,
    text: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Sigmoid loss over all image-text pairs (SigLIP).

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``::

        term_i = softplus(-l_ii) + sum_{j != i} softplus(l_ij)

    The mean divides the sum over all ``N^2`` pairs by N, not by ``N^2``, as the paper and open_clip do. Features
    are taken as they are given (``normalize=False``). Usual start: ``logit_scale = 10``, ``logit_bias = -10``.

    Args:
        image: ``[N, d]``; float64, float32, bfloat16 or float16.
        text: ``[N, d]``; row i belongs to image i.
        logit_scale: number or 0-d tensor.
        logit_bias: number or 0-d tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"`` (the sum over image i's pairs); float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, a logit_scale or logit_bias that is no number.
        ValueError: differing shapes or devices, an empty batch, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343, section 3.2 and algorithm 1.
    """
    check_matched(image=image, text=text)
    look_once(image, text, logit_scale, options["normalize"])
    return pair_sum(
        Points(image),
        Points(text),
        as_scalar("logit_scale", logit_scale),
        negatives=Pairs.NEGATIVE,
        positives=Pairs.POSITIVE,
        col_bias=expand_scalar("logit_bias", logit_bias, text),
        offset=None,
        reduction=reduction,
        **options,
    )


def look_once(image: Tensor, text: Tensor, logit_scale: Scalar, normalize: bool) -> None:
    """At the first call of a process: features that nobody normalised, a scale that is still a logarithm."""
    if observed() or not first_time("features of clip"):
        return
    if isinstance(logit_scale, nn.Parameter):
        warn_once(
            "logarithm of a scale",
            "logit_scale is a Parameter and multiplies as it is; models keep its logarithm: pass logit_scale.exp()",
        )
    norms = torch.stack([x.detach().float().norm(dim=1).amax() for x in (image, text)])
    if not normalize and (norms - 1).abs().amax() > UNIT:
        warn_once(
            "features without norm",
            f"image and text features are taken as they are given, with norms up to {norms.amax().item():.3g}; CLIP "
            "and SigLIP compare unit vectors: normalise them, or pass normalize=True",
        )
