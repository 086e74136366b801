# SPDX-License-Identifier: Apache-2.0
"""PCL-SR: the contrastive term of a super-resolution network, and the loss of its discriminator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pycl.core.problem import check_whole
from pycl.functional._common import unit, widen


def paired_info_nce(anchor: Tensor, positives: Sequence[Tensor], negatives: Sequence[Tensor]) -> Tensor:
    r"""InfoNCE of feature maps with maps of the same image, sharp ones against blurred ones.

    With ``s(a, b)_i`` the cosine over the channels of ``a_i`` and ``b_i``, averaged over the pixels::

        value = mean_p mean_i ( log( exp s(a, p)_i + sum_n exp s(a, n)_i ) - s(a, p)_i )

    There is no temperature. Positives and negatives are constant. Without negatives, or without positives, the value is
    0 with zero gradient. There are no pairs of different images, so nothing is swept and there is no backend to choose.

    Args:
        anchor: ``[B, c, h, w]``, features of the network's output; float64, float32, bfloat16 or float16.
        positives, negatives: lists of ``[B, c, h, w]``, map i of each is of image i.

    Raises:
        TypeError: maps that are not floating point, or that are not in lists.
        ValueError: an empty map, differing shapes or devices.

    Wu et al., "A Practical Contrastive Learning Framework for Single-Image Super-Resolution" (PCL-SR), arXiv
    2111.13924, the contrastive loss. The released code computes the features of the output without gradients too, so
    there the term trains nothing; here the anchor has its gradient, as in the paper.
    """
    groups = {"positives": positives, "negatives": negatives}
    _check_map("anchor", anchor, anchor)
    for name, maps in groups.items():
        if isinstance(maps, Tensor) or not isinstance(maps, Sequence):
            raise TypeError(f"{name} must be a list of tensors, got {type(maps).__name__}")
        for k, x in enumerate(maps):
            _check_map(f"{name}[{k}]", x, anchor)
    a = unit(anchor.movedim(1, -1))
    if not positives:
        return 0.0 * a.sum()
    of_positives, of_negatives = (
        [(a * unit(x.detach().movedim(1, -1))).sum(-1).flatten(1).mean(1) for x in maps] for maps in groups.values()
    )
    s = torch.stack(of_positives)
    if not of_negatives:
        return 0.0 * s.sum()
    return -F.logsigmoid(s - torch.stack(of_negatives).logsumexp(0)).mean()


def dual_contrastive(real: Tensor, fake: Tensor) -> Tensor:
    r"""A discriminator's loss: every real logit against all fake ones, and every fake against all real ones.

    With softplus(x) = log(1 + exp x)::

        value = mean_i softplus( log sum_j exp f_j - r_i ) + mean_j softplus( log sum_i exp(-r_i) + f_j )

    It takes ``O(n + m)``: the released code stores two matrices ``[n, 1 + m]``, ``[m, 1 + n]`` for the same numbers.
    Without real or without fake logits the value is 0 with zero gradient.

    Args:
        real, fake: logits ``[n]`` and ``[m]`` as given, of patches flattened; float64, float32, bfloat16 or float16.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: logits that have another shape or are on different devices.

    Wu et al., arXiv 2111.13924 (PCL-SR); the loss is that of Yu et al., "Dual Contrastive Loss and Attention for GANs",
    arXiv 2103.16748.
    """
    for name, x in (("real", real), ("fake", fake)):
        _check_floats(name, x)
        if x.dim() != 1:
            raise ValueError(f"{name} must have shape [n], got {tuple(x.shape)}")
        if x.device != real.device:
            raise ValueError(f"{name} must be on {real.device} as real is, got {x.device}")
    r, f = widen(real), widen(fake)
    if not r.numel() or not f.numel():
        return r.sum() * 0.0 + f.sum() * 0.0
    return -F.logsigmoid(r - f.logsumexp(0)).mean() - F.logsigmoid(-(-r).logsumexp(0) - f).mean()


def _check_floats(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    check_whole(name, x)


def _check_map(name: str, x: Tensor, anchor: Tensor) -> None:
    _check_floats(name, x)
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"{name} must have shape [B, c, h, w], none of them 0, got {tuple(x.shape)}")
    if x.shape != anchor.shape:
        raise ValueError(f"{name} must have the shape {tuple(anchor.shape)} of the anchor, got {tuple(x.shape)}")
    if x.device != anchor.device:
        raise ValueError(f"{name} must be on {anchor.device} as the anchor is, got {x.device}")
