# SPDX-License-Identifier: Apache-2.0
"""pytorch-metric-learning's losses whose positives and negatives meet thresholds: log-sum-exps of both pair sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pycl.compat._peer import Hooks
from pycl.compat._plain import is_plain
from pycl.core.pairs import Pairs
from pycl.engine.reduction import zero_if_empty
from pycl.engine.reductions import pair_stats
from pycl.functional import circle
from pycl.functional._common import Scalar, is_number

from ._fused import LOSSES, FusedMatrixLoss, FusedPairLoss, by_anchor, scalar, why_no_number, why_several
from ._logits import as_compared, logits, roots, why_no_logits
from ._pairs import Compared, lse_by_anchor


class OverThresholds(FusedMatrixLoss):
    """Log-sum-exps of how far positives are on the wrong side of one threshold, and negatives of another.

    With x the similarity, or minus the distance: ``lse_p steepness_p (threshold_p - x)`` and ``lse_n steepness_n (x -
    threshold_n)``.
    """

    def _sides(self) -> tuple[tuple[Scalar, Scalar], tuple[Scalar, Scalar]]:
        """Steepness and threshold of the positives, and of the negatives."""
        raise NotImplementedError

    def _terms(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """One term for each anchor; -inf stands for no pairs."""
        raise NotImplementedError

    def _column(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Terms [n, 1], the library's shape: its ``ClassWeightedReducer`` makes the mean of [n, n] products of them."""
        return self._terms(positives, negatives).unsqueeze(1)

    def _info(self, problem: Compared, labels: Tensor | None) -> dict[str, Any] | None:
        (of_positives, least), (of_negatives, most) = self._sides()
        sign = 1 if self.distance.is_inverted else -1
        positives, counts, negatives = self._log_sums(problem, -sign * of_positives, sign * of_negatives)
        n_positives = int(counts.sum(dtype=torch.float64))
        if max(n_positives, problem.n_pairs - n_positives) <= 1:  # nothing to the library
            return None
        positives, negatives = positives + sign * of_positives * least, negatives - sign * of_negatives * most
        return by_anchor(self._column(positives, negatives))

    def _log_sums(self, problem: Compared, of_positives: Scalar, of_negatives: Scalar) -> tuple[Tensor, Tensor, Tensor]:
        """Log-sum-exp and number of the positives, and log-sum-exp of the negatives, at factors of what is given."""
        sweep = logits(problem, self.distance, of_positives)
        stats = pair_stats(denominator=Pairs.POSITIVE, positives=Pairs.POSITIVE, **sweep)
        sweep = logits(problem, self.distance, of_negatives)
        return stats.lse, stats.pos_count, pair_stats(denominator=Pairs.NEGATIVE, **sweep).lse

    def _listed(self, n: int, positives: tuple[Tensor, Tensor], negatives: tuple[Tensor, Tensor]) -> Tensor:
        (of_positives, least), (of_negatives, most) = self._sides()
        (near, a1), (far, a2) = positives, negatives
        sign = 1 if self.distance.is_inverted else -1
        near, far = sign * of_positives * (least - near), sign * of_negatives * (far - most)
        return self._column(lse_by_anchor(near, a1, n), lse_by_anchor(far, a2, n))


class MultiSimilarityLoss(OverThresholds, LOSSES.MultiSimilarityLoss):
    r"""pytorch-metric-learning's ``MultiSimilarityLoss``: soft hinges on positives and on negatives.

    With s the similarity, P(i) the other points of i's class and N(i) the points of other classes::

        term_i = log( 1 + sum_{p in P(i)} exp(-alpha (s_ip - base)) ) / alpha
               + log( 1 + sum_{n in N(i)} exp(  beta (s_in - base)) ) / beta

    Two sweeps over the similarities and O(n) numbers. One positive beside one negative pair at most gives 0 with a
    graph. Half embeddings are summed in float32.

    The cosine similarity, the dot product and ``LpDistance(power=2)``, references and every reducer are fused, as is an
    ``indices_tuple`` that lists all pairs. Of another list, as a miner's or one without labels, the library computes
    the matrix of similarities, as the miner did, and P listed pairs take O(P) numbers besides. Other distances,
    ``collect_stats`` and methods that a subclass overrides run the library's code, with a ``FallbackWarning``.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n], ``ref_emb`` [m, d] and ``ref_labels`` [m]; a scalar.

    Raises:
        ValueError: labels of another length or shape, neither labels nor an ``indices_tuple``.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", arXiv 1904.06627.
    """

    def _why_option(self) -> str:
        return why_no_number(alpha=self.alpha, beta=self.beta) or why_several(base=self.base)

    def _sides(self) -> tuple[tuple[Scalar, Scalar], tuple[Scalar, Scalar]]:
        base = scalar(self.base)
        return (scalar(self.alpha), base), (scalar(self.beta), base)

    def _terms(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return -logsigmoid(-positives) / scalar(self.alpha) - logsigmoid(-negatives) / scalar(self.beta)


class GeneralizedLiftedStructureLoss(OverThresholds, LOSSES.GeneralizedLiftedStructureLoss):
    r"""pytorch-metric-learning's ``GeneralizedLiftedStructureLoss``: the far positives against the near negatives.

    With D the distance, P(i) the other points of i's class and N(i) the points of other classes::

        term_i = max(0, log sum_{p in P(i)} exp(D_ip - pos_margin) + log sum_{n in N(i)} exp(neg_margin - D_in))

    where a log-sum-exp over nothing is 0, and ``-D`` is the similarity where there is one. Two sweeps and O(n) numbers.
    The default distance, which is not squared, takes one sweep in plain torch on tiles, whatever the backend: it saves
    memory, and time from some 2,000 points on.

    Everything else is as in :class:`MultiSimilarityLoss`.

    Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", arXiv 1703.07737, page 4.
    """

    def _why_option(self) -> str:
        return why_several(pos_margin=self.pos_margin, neg_margin=self.neg_margin)

    def _why_no_logits(self) -> str:
        return why_no_logits(self.distance, squares=True, roots=True)

    def _sides(self) -> tuple[tuple[Scalar, Scalar], tuple[Scalar, Scalar]]:
        return (1.0, scalar(self.pos_margin)), (1.0, scalar(self.neg_margin))

    def _log_sums(self, problem: Compared, of_positives: Scalar, of_negatives: Scalar) -> tuple[Tensor, Tensor, Tensor]:
        if self.distance.is_inverted or self.distance.power == 2:
            return super()._log_sums(problem, of_positives, of_negatives)
        sweep = roots(problem, self.distance)
        stats = pair_stats(denominator=Pairs.NEGATIVE, positives=Pairs.POSITIVE, **sweep)
        return stats.pos_lse, stats.pos_count, stats.lse

    def _terms(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return (zero_if_empty(positives) + zero_if_empty(negatives)).relu()


class CircleLoss(FusedPairLoss, LOSSES.CircleLoss):
    r"""pytorch-metric-learning's ``CircleLoss``: every similarity is pulled as hard as it is far from its optimum.

    The terms are those of :func:`pycl.functional.circle` with the margin ``m``, which has the formula: plain torch on
    strips of the matrix, and O(n) numbers besides. The default ``AvgNonZeroReducer`` takes the mean of those above 0.

    The cosine similarity with any ``p`` and every reducer are fused. References, lists of other than all pairs, another
    ``op``, ``on``, ``delta_p`` or ``delta_n`` than ``m`` gives, and what :class:`MultiSimilarityLoss` says, run the
    library's code, with a ``FallbackWarning``.

    Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", arXiv 2002.10857, equation 6.
    """

    _method = "mat_based_loss"
    _takes_lists = False
    _formula = Hooks(LOSSES.CircleLoss, "mat_based_loss", "_compute_loss")

    def _why_option(self) -> str:
        m, gamma = self.delta_n, self.gamma  # m itself is not looked at again
        if not (is_number(m) and is_number(gamma) and m >= 0 and gamma > 0):
            return "m or gamma that is no positive number"
        if (self.op, self.on, self.delta_p) != (1 + m, -m, 1 - m):
            return "op, on, delta_p or delta_n of its own"
        plus = self.soft_plus
        if not is_plain(plus, nn.Softplus) or plus.beta != 1 or plus.threshold < 20:
            return "a soft_plus of its own"
        return ""

    def _why_no_logits(self) -> str:
        return why_no_logits(self.distance)

    def _why_no_sums(self, problem: Compared | None = None) -> str:
        return "references" if problem is not None and problem.cols is not None else ""

    def _info(self, problem: Compared, labels: Tensor | None) -> dict[str, Any] | None:
        z, ids = problem.rows[:2]
        assert ids is not None
        options: Any = {"margin": float(self.delta_n), "gamma": float(self.gamma), "reduction": "none"}
        return by_anchor(circle(as_compared(z, self.distance), ids, normalize=False, **options).unsqueeze(1))


MultiSimilarityLoss._formula = Hooks(MultiSimilarityLoss, "mat_based_loss", "_compute_loss")
GeneralizedLiftedStructureLoss._formula = Hooks(GeneralizedLiftedStructureLoss, "mat_based_loss", "_compute_loss")
