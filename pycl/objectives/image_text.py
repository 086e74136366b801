# SPDX-License-Identifier: Apache-2.0
"""Supervised contrastive learning of images and texts, between the modalities and within each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group, agree, of_the_batch
from pycl.engine.average import pair_average
from pycl.engine.modifiers import Limit
from pycl.engine.reduction import share_of
from pycl.engine.reductions import PairStats, pair_stats, pair_sum
from pycl.engine.views import check_labels
from pycl.functional._common import Scalar, as_scalar, check_matched, to_logit_scale, unit


@of_the_batch
def image_text_sup_con(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    *,
    temperature: Scalar = 0.07,
    inner_image: Scalar = 1.0,
    inner_text: Scalar = 1.0,
    group: Group | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Label-guided contrastive learning of images and texts: SupCon from each modality to each.

    With ``s_ij`` the cosine of two points over the temperature, ``P(i)`` the points that share a label with i::

        S(X, Y) = mean_i ( log sum_j exp s_ij  -  mean_{p in P(i)} s_ip )
        value   = S(image, text) + S(text, image) + inner_image S(image, image) + inner_text S(text, text)

    Between the modalities the own pair is always a positive; within one a point is no candidate of its own, and one
    without positives contributes 0 to the mean.

    Args:
        image, text: ``[N, d]``, text i belongs to image i; float64, float32, bfloat16 or float16.
        labels: integers ``[N]``, the class of every pair; or bool ``[N, L]``, which of L labels it has.
        temperature: positive number or 0-d tensor.
        inner_image, inner_text: weights, numbers or 0-d tensors; the number 0 computes nothing.
        group: ranks that share the batch, each with pairs of its own: see :mod:`pycl.distributed`. Labels are compared
            as they are.
        backend: name of the backend to run on; None picks one.

    Raises:
        TypeError: embeddings that are not floating point, labels that are neither integers nor bool, weights that are
            no numbers.
        ValueError: differing shapes or devices, an empty batch, labels of another length, a temperature that is not
            positive, an unknown backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    "A Framework For Image Synthesis Using Supervised Contrastive Learning", arXiv 2412.03957. No code was released; the
    terms are SupCon's, arXiv 2004.11362, equation 2.
    """
    scale = to_logit_scale(temperature)
    inner = {"inner_image": as_scalar("inner_image", inner_image), "inner_text": as_scalar("inner_text", inner_text)}
    check_matched(image=image, text=text)
    several = isinstance(labels, Tensor) and labels.dtype == torch.bool
    ids = None
    if several:
        _check_label_sets(labels, image)
    else:
        ids = check_labels(labels, len(image), image)
    numbers = {name: w for name, w in inner.items() if not isinstance(w, Tensor)}
    everyone = agree(group, image.device, [len(image)], operator="image_text_sup_con", several=several, **numbers)
    u, v = unit(image), unit(text)  # once, or a half type would round the gradient of each sweep
    # ids of their own: torch.compile takes no tensor twice
    points = Points(u, ids), Points(v, None if ids is None else ids.clone())
    options: dict[str, Any] = {"group": group, "backend": backend}
    sweep: dict[str, Any] = {"positives": Pairs.NONE if several else Pairs.POSITIVE, **options}
    across = pair_stats(points[0], points[1], scale, denominator=Pairs.ALL, offset=None, sides="both", **sweep)
    stats: list[PairStats] = [*across]
    weights = 1.0, 1.0, *inner.values()
    kept = [k for k, w in enumerate(weights) if isinstance(w, Tensor) or w != 0.0]
    stats += [pair_stats(points[k - 2], None, scale, denominator=Pairs.OTHERS, **sweep) for k in kept[2:]]
    if several:
        sums, counts = _over_shared_labels(u, v, labels, **options)
        stats = [s._replace(pos_sum=scale * sums[k], pos_count=counts[k]) for s, k in zip(stats, kept, strict=True)]
    terms = [weights[k] * _cross_entropy(s) for s, k in zip(stats, kept, strict=True)]
    return share_of(torch.stack(terms).sum(0), "mean", everyone)


def _cross_entropy(stats: PairStats) -> Tensor:
    """SupCon's terms; 0 without positives."""
    mean_positive = stats.pos_sum / stats.pos_count.clamp_min(1)
    return (stats.lse - mean_positive).masked_fill(stats.pos_count == 0, 0.0)


def _over_shared_labels(u: Tensor, v: Tensor, labels: Tensor, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Sums of cosines over positives and numbers of positives: image to text, text to image, images, texts.

    The sums are linear in the points, so that one mean of all points that share a label serves the four of them.
    """
    n, d = u.shape
    members = labels.to(u.dtype)
    # logits of 0; the guide's product is minus the number of labels that two points share
    alike = Points(u.new_zeros(n, 1))
    sharing: dict[str, Any] = {"modifiers": (Limit(u.new_full((n,), -0.5), guide=(-members, members)),), **options}
    others = pair_sum(alike, None, negatives=Pairs.OTHERS, map="exp", **sharing).round()
    mean = pair_average(alike, None, torch.cat([u, v], 1), pairs=Pairs.OTHERS, detach_weights=True, **sharing)
    of_u, of_v = (others[:, None] * mean).split(d, 1)
    sums = [(u * (of_v + v)).sum(1), (v * (of_u + u)).sum(1), (u * of_u).sum(1), (v * of_v).sum(1)]
    return sums, [others + 1, others + 1, others, others]


def _check_label_sets(labels: Tensor, like: Tensor) -> None:
    if labels.dim() != 2 or len(labels) != len(like) or labels.shape[1] == 0:
        raise ValueError(f"labels of bool must have shape [{len(like)}, L] with L >= 1, got {tuple(labels.shape)}")
    if labels.device != like.device:
        raise ValueError(f"labels must be on {like.device} as the embeddings are, got {labels.device}")
