# SPDX-License-Identifier: Apache-2.0
"""SupContrast's loss: ``from pycl.compat.supcontrast import SupConLoss`` instead of ``from losses`` of that repository.

It stands alone: SupContrast is no package, and any module may be called ``losses``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pycl.compat._common import is_negative, nothing, signed_scale
from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import LOCAL
from pycl.engine.reductions import pair_stats
from pycl.functional import sup_con
from pycl.functional._common import Scalar, no_autocast, widen

__all__ = ["SupConLoss"]


class SupConLoss(nn.Module):
    r"""SupContrast's ``SupConLoss``: the points of one class attract each other.

    With ``s_ij = <f_i, f_j> / temperature`` over all V views of B samples and P(i) the positives of anchor i::

        loss = temperature / base_temperature * mean_i [ log sum_{j != i} exp s_ij - mean_{p in P(i)} s_ip ]

    ``contrast_mode="all"`` makes every view an anchor, ``"one"`` the first. Positives are the other points of the same
    label, or without labels the other views of the sample, or what ``mask`` says: ``mask[i, j]`` is the weight of
    sample j's views, all of them, for the views of sample i; any weights, symmetric or not. Features are taken **as
    they are given**: normalise them before. An anchor without positives contributes 0 and counts, as in SupContrast
    since December 2023 (NaN before).

    No matrix of all points is stored: a mask needs a product [B, B] x [B, d] more. Where the largest logit is the
    anchor's own and far above the others, SupContrast's exponentials vanish and it returns NaN or infinity; this does
    not. For half features everything is in float32, as is the result.

    Shape:
        features [B, V, ...], labels [B] or [B, 1] of any dtype, mask [B, B]; a scalar.

    Raises:
        ValueError: features of fewer than three dimensions, labels and a mask, labels of another length, a mask of
            another shape, an unknown contrast_mode, a temperature of 0.
    """

    def __init__(self, temperature: Scalar = 0.07, contrast_mode: str = "all", base_temperature: Scalar = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if features.dim() < 3:
            raise ValueError(f"features must have shape [B, V, ...], got {tuple(features.shape)}")
        if labels is not None and mask is not None:
            raise ValueError("labels and mask must not both be given")
        if self.contrast_mode not in ("all", "one"):
            raise ValueError(f"contrast_mode must be 'all' or 'one', got {self.contrast_mode!r}")
        z = features.flatten(2).transpose(0, 1)  # [V, B, d]
        ids = torch.arange(z.shape[1], device=z.device) if labels is None else _ids(labels, z)
        n_views, n = z.shape[:2]
        if n_views * n == 2 and (mask is None or mask.shape == (n, n)):
            loss = nothing(z)  # the only candidate is the positive, or there is none
        elif mask is None and self.contrast_mode == "all" and not is_negative(self.temperature):
            loss = sup_con(z, ids, temperature=self.temperature, normalize=False, group=LOCAL)
        else:
            loss = self._of_anchors(z, ids, mask)
        return loss * (self.temperature / self.base_temperature)

    def _of_anchors(self, z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        n_views = len(z)
        scale = signed_scale(self.temperature)
        anchors = z if self.contrast_mode == "all" else z[:1]
        points = Points(z.flatten(0, 1), ids.repeat(n_views))
        rows, cols = (points, None) if anchors is z else (Points(z[0], ids), points)
        positives = Pairs.POSITIVE if mask is None else Pairs.NONE
        stats = pair_stats(rows, cols, scale, denominator=Pairs.OTHERS, positives=positives)
        if mask is None:
            total, weight = stats.pos_sum, stats.pos_count
        else:
            total, weight = _masked_sums(widen(z), widen(anchors), mask)
            total = (total * scale).flatten()
            weight = weight.repeat(len(anchors))
        none = weight < 1e-6  # SupContrast's limit
        return (stats.lse - total / weight.masked_fill(none, 1)).masked_fill(none, 0).mean()


def _masked_sums(z: Tensor, anchors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of products of the anchors [A, B, d] with their positives, [A, B], and of the positives' weights, [B]."""
    n_views, n, _ = z.shape
    if mask.shape != (n, n):
        raise ValueError(f"mask must have shape [{n}, {n}], got {tuple(mask.shape)}")
    mask = mask.to(z)
    own = mask.diagonal()
    with no_autocast(z):
        targets = mask @ z.sum(0)
    # an anchor is no positive of its own
    total = (anchors * (targets - own.unsqueeze(1) * anchors)).sum(2)
    return total, n_views * mask.sum(1) - own


def _ids(labels: Tensor, z: Tensor) -> Tensor:
    """Labels as integers, of any dtype, on the device of the features."""
    labels = labels.to(z.device).flatten()
    if len(labels) != z.shape[1]:
        raise ValueError(f"labels must be as many as samples, {z.shape[1]}, got {len(labels)}")
    return labels.unique(return_inverse=True)[1] if labels.is_floating_point() else labels.long()
