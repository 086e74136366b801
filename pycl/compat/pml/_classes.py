# SPDX-License-Identifier: Apache-2.0
"""pytorch-metric-learning's softmax losses over class weights, n x C logits that are not stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pycl.compat._peer import Hooks, find_peer
from pycl.compat._plain import is_plain
from pycl.core.pairs import Pairs, Points
from pycl.engine.reductions import PairStats, pair_stats
from pycl.functional._common import Scalar, widen

from ._fused import LOSSES, FusedLoss, by_anchor, scalar, why_no_number, why_several
from ._logits import logits, why_no_logits
from ._pairs import Compared

_LISTS: Any = find_peer("pytorch_metric_learning.utils.loss_and_miner_utils")


class OverClasses(FusedLoss):
    r"""A softmax over C classes with a weight vector each: a log-sum-exp over the other classes, and the own logit.

    ``-log( exp t_i / (exp t_i + sum_{c != y_i} exp l_ic) )``, where ``t_i`` is what the loss makes of ``l_iy_i``.
    """

    W: nn.Parameter  # [d, C]

    def _why_not(self, embeddings: Tensor, labels: Tensor) -> str:
        return why_no_classes(labels, self.W.shape[1])

    def _fused(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> dict[str, Any]:
        self.cast_types(embeddings.dtype, embeddings.device)
        of_miner = _LISTS.convert_to_weights(indices_tuple, labels, dtype=embeddings.dtype)
        of_others, own = self._logits(embeddings, labels)
        found = {"loss": by_anchor(-logsigmoid(own - of_others) * of_miner)}
        self.add_weight_regularization_to_loss_dict(found, self.W.t())
        return found

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The log-sum-exp over the other classes, and the logit of the own one."""
        raise NotImplementedError

    def _stats(self, embeddings: Tensor, labels: Tensor, weights: Tensor, factor: Any, **changes: Any) -> PairStats:
        """Of ``factor`` times the similarities to classes of weights [C, d]; ``pos_sum`` is that to one's own."""
        classes = torch.arange(len(weights), device=labels.device)
        problem = Compared(Points(embeddings, labels), Points(weights, classes), None)
        sweep = logits(problem, self.distance, factor) | changes
        stats: PairStats = pair_stats(denominator=Pairs.NEGATIVE, positives=Pairs.POSITIVE, **sweep)
        return stats


class WithMargin(OverClasses):
    """A class's own logit has a margin, which the library makes of n cosines."""

    def _why_option(self) -> str:
        return why_no_cross_entropy(self.cross_entropy) or why_several(scale=self.scale) or why_no_logits(self.distance)

    def _why_never(self) -> str:
        return super()._why_never() or ("" if self.num_classes == self.W.shape[1] else "a num_classes that is not W's")

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        factor = self._factor(embeddings)
        stats = self._stats(embeddings, labels, self.W.t(), factor)
        return stats.lse, self._own(stats.pos_sum, factor)

    def _factor(self, embeddings: Tensor) -> Scalar:
        """What a cosine is multiplied with: a number, or one for each sample."""
        return scalar(self.scale)

    def _own(self, logit: Tensor, magnitude: Scalar) -> Tensor:
        """The logit with its margin, of one without: the magnitude times a cosine."""
        divisor = magnitude.masked_fill(magnitude == 0, 1.0) if isinstance(magnitude, Tensor) else magnitude or 1.0
        cosine: Tensor = self.modify_cosine_of_target_classes(self._inside(logit / divisor))
        return cosine * magnitude

    def _inside(self, cosine: Tensor) -> Tensor:
        return cosine


_HOOKS = "get_target_mask", "get_cosine", "scale_logits"


class ArcFaceLoss(WithMargin, LOSSES.ArcFaceLoss):
    r"""pytorch-metric-learning's ``ArcFaceLoss``: a softmax over classes with a margin on the own angle.

    With ``cos theta_ic`` the cosine of embedding i and column c of ``W`` [d, C], ``y_i`` the label and m the margin::

        l_ic = scale cos theta_ic,      t_i = scale cos(theta_iy_i + m)
        term_i = -log( exp t_i / (exp t_i + sum_{c != y_i} exp l_ic) )

    where ``t_i = scale (cos theta_iy_i - m sin m)`` beyond ``theta = pi - m``. One sweep over the n x C logits, none of
    which is stored, and O(n + C) numbers beside ``W``. Half embeddings are summed in float32. A sample that has exactly
    the direction of its class, or the opposite one, gets no gradient from its own logit; the library's is NaN there.

    Every reducer, regularizer, ``indices_tuple`` (which weights samples) and ``p`` is fused. Other distances, labels
    that are no int64 in 0 ... C - 1, a ``cross_entropy`` of another kind, ``collect_stats`` of the distance and methods
    that a subclass overrides, but for ``modify_cosine_of_target_classes`` and ``cast_types``, run the library's code,
    with a ``FallbackWarning``.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n]; a scalar.

    Raises:
        ValueError: labels of another length or shape or none, references.

    Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", arXiv 1801.07698.
    """

    _formula = Hooks(LOSSES.ArcFaceLoss, *_HOOKS)

    def _inside(self, cosine: Tensor) -> Tensor:
        """Cosines of -1 and 1 as constants: an angle has no slope there."""
        return torch.where(cosine.abs() < 1, cosine, cosine.detach())


class CosFaceLoss(WithMargin, LOSSES.CosFaceLoss):
    r"""pytorch-metric-learning's ``CosFaceLoss``: :class:`ArcFaceLoss` with ``t_i = scale (cos theta_iy_i - margin)``.

    Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", arXiv 1801.09414.
    """

    _formula = Hooks(LOSSES.CosFaceLoss, *_HOOKS)


class LargeMarginSoftmaxLoss(WithMargin, LOSSES.LargeMarginSoftmaxLoss):
    r"""pytorch-metric-learning's ``LargeMarginSoftmaxLoss``: a margin that multiplies the own angle.

    With m the margin, an integer, and k the whole number of angles of ``pi / m`` in ``theta``::

        l_ic = scale |e_i| |w_c| cos theta_ic,    t_i = scale |e_i| |w_y_i| ( (-1)^k cos(m theta_iy_i) - 2 k )

    Everything else is as in :class:`ArcFaceLoss`.

    Liu et al., "Large-Margin Softmax Loss for Convolutional Neural Networks", arXiv 1612.02295.
    """

    _formula = Hooks(LOSSES.LargeMarginSoftmaxLoss, *_HOOKS)

    def _why_option(self) -> str:
        return super()._why_option() or ("" if self.distance.normalize_embeddings else "normalize_embeddings=False")

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.distance.get_norm(widen(embeddings)) * scalar(self.scale)
        lengths = self.distance.get_norm(widen(self.W), dim=0)
        stats = self._stats(embeddings, labels, self.W.t(), factor, col_scale=lengths)
        return stats.lse, self._own(stats.pos_sum, factor * lengths[labels])


class SphereFaceLoss(WithMargin, LOSSES.SphereFaceLoss):
    r"""pytorch-metric-learning's ``SphereFaceLoss``: :class:`LargeMarginSoftmaxLoss` with class weights at unit length.

    ``l_ic = scale |e_i| cos theta_ic`` and ``t_i = scale |e_i| ( (-1)^k cos(m theta_iy_i) - 2 k )``.

    Liu et al., "SphereFace: Deep Hypersphere Embedding for Face Recognition", arXiv 1704.08063.
    """

    _formula = Hooks(LOSSES.SphereFaceLoss, *_HOOKS)

    def _factor(self, embeddings: Tensor) -> Scalar:
        lengths: Tensor = torch.linalg.vector_norm(widen(embeddings), dim=1)
        return lengths * scalar(self.scale)


class NormalizedSoftmaxLoss(OverClasses, LOSSES.NormalizedSoftmaxLoss):
    r"""pytorch-metric-learning's ``NormalizedSoftmaxLoss``: a softmax over classes with weights at unit length.

    ``l_ic = <u_i, w_c> / temperature`` with u_i the embedding at unit length and w_c column c of ``W`` at unit length,
    and no margin. ``LpDistance(power=2)`` is fused, too. Everything else is as in :class:`ArcFaceLoss`.

    Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", arXiv 1811.12649.
    """

    _formula = Hooks(LOSSES.NormalizedSoftmaxLoss, "get_logits")

    def _why_option(self) -> str:
        why = why_no_cross_entropy(self.cross_entropy) or why_no_number(temperature=self.temperature)
        return why or why_no_logits(self.distance, squares=True)

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.W.t()
        if not self.distance.normalize_embeddings:  # else it has both at unit length
            weights = self.distance.normalize(widen(weights))
        sign = 1.0 if self.distance.is_inverted else -1.0
        stats = self._stats(embeddings, labels, weights, sign / scalar(self.temperature))
        return stats.lse, stats.pos_sum


def why_no_classes(labels: Tensor, n_classes: int) -> str:
    """Why labels are no numbers of classes, or nothing."""
    if labels.dtype != torch.int64:
        return f"labels of dtype {labels.dtype}"
    first, last = torch.stack(labels.aminmax()).tolist()
    return "" if first >= 0 and last < n_classes else "labels outside of 0 ... C - 1"


def why_no_cross_entropy(module: Any) -> str:
    """Why a loss's cross entropy is not the one that it made, or nothing."""
    plain = is_plain(module, nn.CrossEntropyLoss) and module.reduction == "none" and module.weight is None
    if not plain or module.ignore_index >= 0 or module.label_smoothing != 0:
        return "a cross_entropy of its own"
    return ""
