# SPDX-License-Identifier: Apache-2.0
"""Image-text losses: the softmax loss of CLIP and the sigmoid loss of SigLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pycl.backends import registry
from pycl.core.notices import first_time, warn_once
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import accumulation_dtype
from pycl.core.tracing import observed
from pycl.distributed.ranks import Group, agree, rows_of_all
from pycl.engine.reduction import check_reduction, reduce
from pycl.engine.reductions import pair_cross_entropy, pair_sum
from pycl.engine.views import check_labels, occurrences
from pycl.functional._common import Scalar, as_scalar, check_matched, expand_scalar, unit
from pycl.functional._options import Options, loss
from pycl.functional._smoothing import check_smoothing, product_means

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
    label_smoothing: float = 0,  # torch.compile(dynamic=True) makes a symbol of 0.0, and compiles twice
    **options: Unpack[Options],
) -> Tensor:
    r"""Symmetric cross entropy over image-to-text and text-to-image (CLIP).

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``::

        term_i = ( log sum_j exp l_ij + log sum_j exp l_ji ) / 2  -  l_ii

    Features are taken **as they are given** (``normalize=False``) and ``logit_scale`` multiplies, as in open_clip:
    pass ``log_scale.exp()`` of the learnable log-scale. A constant bias does not change a softmax; it is accepted so
    that a model's parameter stays in the graph (its gradient is zero up to rounding).

    ``label_smoothing`` e takes, as torch's cross entropy does, the targets (1 - e) on the own pair and e spread evenly
    over all n candidates: ``term_i + e (l_ii - (mean_j l_ij + mean_j l_ji) / 2)``.

    Args:
        image: ``[N, d]``; float64, float32, bfloat16 or float16.
        text: ``[N, d]``; row i belongs to image i.
        logit_scale: number or 0-d tensor.
        logit_bias: number, 0-d tensor or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: a number from 0 to 1.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"`` (both directions of pair i averaged); float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, a logit_scale that is no number.
        ValueError: differing shapes or devices, an empty batch, a label smoothing outside of 0 to 1, an unknown
            reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020, figure 3.
    """
    check_reduction(reduction)
    smoothing = check_smoothing(label_smoothing)
    check_matched(image=image, text=text)
    look_once(image, text, logit_scale, options["normalize"])
    scale = as_scalar("logit_scale", logit_scale)
    value = pair_cross_entropy(
        Points(image),
        Points(text),
        scale,
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        col_bias=None if logit_bias is None else expand_scalar("logit_bias", logit_bias, text),
        offset=None,
        sides="both",
        reduction=reduction,
        **options,
    )
    if smoothing:  # a bias of all logits leaves their difference as it is
        x, y = unit(image, options["normalize"]), unit(text, options["normalize"])
        where = options["group"], options["backend"]
        means = (product_means(x, y, *where) + product_means(y, x, *where)) / 2
        value = value + smoothing * reduce(scale * ((x * y).sum(1) - means), reduction, options["group"])
    return value


@loss(normalize=False)
def siglip(
    image: Tensor,
    text: Tensor,
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    ids: tuple[Tensor, Tensor] | None = None,
    per_anchor: bool = False,
    reduction: str = "mean",
    **options: Unpack[Options],
) -> Tensor:
    r"""Sigmoid loss over all image-text pairs (SigLIP).

    With ``l_ij = logit_scale <image_i, text_j> + logit_bias``::

        term_i = softplus(-l_ii) + sum_{j != i} softplus(l_ij)

    The mean divides the sum over all ``N^2`` pairs by N, not by ``N^2``, as the paper and open_clip do. Features
    are taken as they are given (``normalize=False``). Usual start: ``logit_scale = 10``, ``logit_bias = -10``.

    With ``ids`` an image has several texts, or a text several images. The positives P(i) are then the texts whose id is
    that of image i, and text i whatever its id; all others are negatives::

        term_i = sum_{j in P(i)} softplus(-l_ij) + sum_{j not in P(i)} softplus(l_ij)

    ``per_anchor=True`` takes the mean over P(i) in place of the first sum: an image counts once, however many texts it
    has.

    Args:
        image: ``[N, d]``; float64, float32, bfloat16 or float16.
        text: ``[N, d]``; row i belongs to image i.
        logit_scale: number or 0-d tensor.
        logit_bias: number or 0-d tensor.
        ids: integers ``[N]`` of the images and ``[N]`` of the texts, ``(image_ids, text_ids)``; None for pairs alone.
            With a group they are compared across ranks as they are.
        per_anchor: weigh the positives of an image by 1 / their number.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"`` (the sum over image i's pairs); float32 (float64 for float64 input).

    Raises:
        TypeError: features that are not floating point, a logit_scale or logit_bias that is no number, ids that are no
            pair of integer tensors.
        ValueError: differing shapes or devices, an empty batch, ids of another length, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343, section 3.2 and algorithm 1.
    """
    check_reduction(reduction)
    check_matched(image=image, text=text)
    look_once(image, text, logit_scale, options["normalize"])
    scale, bias = as_scalar("logit_scale", logit_scale), expand_scalar("logit_bias", logit_bias, text)
    rows, cols, offset, positives, weight = Points(image), Points(text), None, Pairs.POSITIVE, None
    if ids is not None:
        rows, cols = _labelled(image, text, ids)
        offset, positives = 0, Pairs.POSITIVE | Pairs.SELF
        if per_anchor:
            registry.choose(options["backend"], image.device.type, image.dtype)  # before the ranks meet
            weight = 1 / _number_of_positives(rows, cols, options["group"])
    return pair_sum(
        rows,
        cols,
        scale,
        negatives=Pairs.NEGATIVE,
        positives=positives,
        positive_weight=weight,
        col_bias=bias,
        offset=offset,
        reduction=reduction,
        **options,
    )


def _labelled(image: Tensor, text: Tensor, ids: tuple[Tensor, Tensor]) -> tuple[Points, Points]:
    """Both sides with their ids."""
    if not isinstance(ids, (tuple, list)) or len(ids) != 2:
        raise TypeError(f"ids must be a pair of integer tensors, (image_ids, text_ids), got {type(ids).__name__}")
    of_images, of_texts = (check_labels(x, image.shape[0], image, f"ids[{side}]") for side, x in enumerate(ids))
    return Points(image, of_images), Points(text, of_texts)


def _number_of_positives(images: Points, texts: Points, group: Group | None) -> Tensor:
    """How many texts of all ranks have the id of an image, its own included whatever that is, [N]."""
    assert images.ids is not None
    assert texts.ids is not None
    everyone = agree(group, texts.z.device, [len(texts.ids)], operator="siglip, per_anchor")
    alike = occurrences(images.ids, rows_of_all(texts.ids, everyone))
    return (alike + (images.ids != texts.ids)).to(accumulation_dtype(images.z.dtype))


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
