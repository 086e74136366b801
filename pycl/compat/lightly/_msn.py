# SPDX-License-Identifier: Apache-2.0
"""lightly's ``MSNLoss``, ``PMSNLoss`` and ``PMSNCustomLoss``, which need lightly."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pycl.compat._common import all_ranks, as_input, codes_of, of_one_dtype
from pycl.compat._peer import fall_back, find_peer
from pycl.core.pairs import Pairs, Points
from pycl.engine.reductions import pair_stats
from pycl.functional._common import no_autocast, unit

peer: Any = find_peer("lightly.loss")
_LIBRARY = find_peer("lightly.loss.msn_loss")
FUNCTIONS = "prototype_probabilities", "sharpen", "sinkhorn"
_THEIRS = {name: getattr(_LIBRARY, name, None) for name in FUNCTIONS}


class MSNLoss(peer.MSNLoss):
    r"""lightly's ``MSNLoss``: masked views predict the prototypes of the whole image.

    With unit vectors a (V views of B anchors, views-major), t (B targets) and c (K prototypes)::

        p_ik = softmax_k(<a_i, c_k> / temperature)
        q_bk = softmax_k(<t_b, c_k> / (temperature * target_sharpen_temperature)), then Sinkhorn's iterations on it
        loss = mean_i -sum_k q_ik log p_ik  +  regularization_weight * regularization_loss(mean_i p_ik)

    Targets q are constants. Of the anchors no probability is stored: the first mean needs their log-sum-exps and the
    prototypes' means under q, the second a log-sum-exp for each prototype. Only the targets' [B, K] are. Logarithms are
    exact where lightly's probabilities round to 0 or their powers to infinity. ``regularization_loss`` is the loss's
    own, overridden or not.

    With ``gather_distributed=True`` all ranks' targets share the prototypes in Sinkhorn's iterations; the loss stays
    that of the rank. A function that was set in ``lightly.loss.msn_loss`` and a temperature that is not positive run
    lightly's code. Sums are in float32 for half inputs, and the loss has the dtype of lightly's.

    Shape:
        anchors [V * B, d], targets [B, d], prototypes [K, d]; a scalar.

    Raises:
        RuntimeError: inputs of differing d, or of two dtypes outside autocast.
        ValueError: anchors that are not whole views of the targets.
    """

    def forward(
        self, anchors: Tensor, targets: Tensor, prototypes: Tensor, target_sharpen_temperature: float = 0.25
    ) -> Tensor:
        if why := self._pycl_why_not() or _cold(target_sharpen_temperature):
            fall_back(type(self).__name__, why)
            return cast("Tensor", super().forward(anchors, targets, prototypes, target_sharpen_temperature))
        anchors, prototypes = of_one_dtype(anchors, prototypes)
        targets, _ = of_one_dtype(targets, prototypes)
        if len(targets) == 0 or len(anchors) % len(targets):
            raise ValueError(f"anchors must be whole views of the {len(targets)} targets, got {len(anchors)} rows")
        means = self._wanted(targets, prototypes, target_sharpen_temperature)
        found = _predict(unit(anchors), unit(prototypes), self.temperature)
        own = (found.anchors * means.repeat(len(anchors) // len(targets), 1)).sum(1) / self.temperature
        loss = (found.lse - own).mean()
        if self.regularization_weight > 0:
            mean_probabilities = (found.prototype_lse() - math.log(len(anchors))).exp()
            loss = loss + self.regularization_weight * self.regularization_loss(mean_anchor_probs=mean_probabilities)
        return as_input(loss, anchors, "product")

    def _wanted(self, targets: Tensor, prototypes: Tensor, sharpening: float) -> Tensor:
        """The prototypes' means under the targets' codes, [B, d], with a gradient to the prototypes alone."""
        c = unit(prototypes)
        with torch.no_grad(), no_autocast(c):
            scale = 1 / (self.temperature * sharpening)
            codes = (unit(targets) @ c.t() * scale).log_softmax(1)
            if self.sinkhorn_iterations > 0:
                group = all_ranks() if self.gather_distributed else None
                codes = codes_of(codes, epsilon=1.0, iterations=self.sinkhorn_iterations, group=group)
            else:
                codes = codes.exp()
        with no_autocast(c):
            return cast("Tensor", codes @ c)

    def _pycl_why_not(self) -> str:
        """Why this loss runs lightly's code whatever it is given, or nothing."""
        changed = [name for name in FUNCTIONS if getattr(_LIBRARY, name, None) is not _THEIRS[name]]
        if changed:
            return f"another {changed[0]} in lightly.loss.msn_loss"
        return "" if self.temperature > 0 else "a temperature that is not positive"


def _cold(sharpening: float) -> str:
    return "" if sharpening > 0 else "a target_sharpen_temperature that is not positive"


class _Predicted(NamedTuple):
    anchors: Tensor
    prototypes: Tensor
    scale: float
    lse: Tensor  # of each anchor over the prototypes

    def prototype_lse(self) -> Tensor:
        """``log sum_i p_ik`` of each prototype over the anchors."""
        rows, cols = Points(self.prototypes), Points(self.anchors)
        return pair_stats(rows, cols, self.scale, denominator=Pairs.ALL, col_bias=-self.lse, offset=None).lse


def _predict(anchors: Tensor, prototypes: Tensor, temperature: float) -> _Predicted:
    scale = 1 / temperature
    lse = pair_stats(Points(anchors), Points(prototypes), scale, denominator=Pairs.ALL, offset=None).lse
    return _Predicted(anchors, prototypes, scale, lse)


class PMSNLoss(peer.PMSNLoss, MSNLoss):
    """lightly's ``PMSNLoss``: :class:`MSNLoss` whose regulariser wants prototypes by a power law."""


class PMSNCustomLoss(peer.PMSNCustomLoss, MSNLoss):
    """lightly's ``PMSNCustomLoss``: :class:`MSNLoss` whose regulariser wants prototypes by a distribution of yours."""
