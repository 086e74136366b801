# SPDX-License-Identifier: Apache-2.0
"""``NTXentLoss`` and ``SupConLoss`` of pytorch-metric-learning over all pairs, without a list or a matrix of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.compat._peer import Hooks
from pycl.core.pairs import Pairs
from pycl.engine.reduction import zero_if_empty
from pycl.engine.reductions import PairStats, pair_stats, pair_sum
from pycl.functional._common import Scalar, widen

from ._alone import LossAlone
from ._fused import LOSSES, FusedMatrixLoss, FusedPairLoss, by_anchor, numel, scalar, why_no_number
from ._logits import logits
from ._pairs import Compared, lse_by_anchor
from ._parts import is_theirs, kind_of

_NTXentBase: Any = LOSSES.NTXentLoss if LOSSES else LossAlone
_SupConBase: Any = LOSSES.SupConLoss if LOSSES else LossAlone


class OverTemperature(FusedPairLoss):
    """A loss of log-sum-exps of the similarities over a temperature."""

    def _why_option(self) -> str:
        return why_no_number(temperature=self.temperature)

    def _info(self, problem: Compared, labels: Tensor | None) -> dict[str, Any] | None:
        sweep = self._sweep(problem)
        stats = pair_stats(denominator=Pairs.NEGATIVE, positives=Pairs.POSITIVE, **sweep)
        counts = stats.pos_count
        most, n_positives = (int(n) for n in torch.stack([counts.max(), counts.sum(dtype=torch.float64)]).tolist())
        n_negatives = problem.n_pairs - n_positives
        # the library counts one positive beside one negative as nothing, too
        if min(n_positives, n_negatives) == 0 or n_positives == n_negatives == 1:
            return None
        return self._reduced(sweep, stats, most, n_positives, labels)

    def _sweep(self, problem: Compared) -> dict[str, Any]:
        """The engine's arguments."""
        return logits(problem, self.distance, self._factor())

    def _factor(self) -> Scalar:
        """Of what the distance gives, in a logit."""
        sign = 1.0 if self.distance is None or self.distance.is_inverted else -1.0
        return sign / scalar(self.temperature)

    def _reduced(
        self, sweep: dict[str, Any], stats: PairStats, most: int, n_positives: int, labels: Tensor | None
    ) -> dict[str, Any]:
        raise NotImplementedError


class NTXentLoss(OverTemperature, _NTXentBase):
    r"""pytorch-metric-learning's ``NTXentLoss``: every positive pair against the negatives of its anchor.

    With ``s_ij = <u_i, u_j> / temperature``, over all pairs (i, p) of one class, N(i) the points of other classes::

        loss = mean_(i,p) [ log( exp s_ip + sum_{n in N(i)} exp s_in ) - s_ip ]

    The other positives of an anchor are not in its denominator. The library has one row of N(i) for each positive
    pair, O(n^3) numbers for n points of classes of two; here it is one sweep over the similarities where no anchor has
    more than one positive and two sweeps elsewhere, and O(n) numbers.

    No two classes or no positive pair, and one positive beside one negative pair, give 0 with a graph. Half embeddings
    are summed in float32 and the result is rounded to their dtype, under autocast to the library's; the library's
    float16 loses every exponential below 6e-5, and its float32 stops at a term of 87.

    The cosine similarity and the dot product, any ``p``, and ``LpDistance(power=2)`` are fused with ``MeanReducer``,
    ``SumReducer``, ``ClassWeightedReducer`` and ``PerAnchorReducer``, as is an ``indices_tuple`` that lists all pairs.
    Of another list, as a miner's or one without labels, the library computes the matrix of similarities, as the miner
    did; sums over P listed pairs take O(P) numbers, where the library has a row of all negatives for each positive. The
    same pairs given by labels and as a list agree to the rounding of the dtype. Other distances, powers and reducers,
    ``collect_stats`` and methods that a subclass overrides run the library's code, with a ``FallbackWarning``.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n], ``ref_emb`` [m, d] and ``ref_labels`` [m]; a scalar.

    Raises:
        ValueError: labels of another length or shape, neither labels nor an ``indices_tuple``.
        RuntimeError: an option without a fused form where the library is not installed.
    """

    _method = "pair_based_loss"

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(temperature=temperature, **kwargs)

    def pair_based_loss(self, mat: Tensor, indices_tuple: tuple[Tensor, ...]) -> Any:
        """As the library, from a matrix of similarities or distances and a list of pairs, in O(pairs) more numbers."""
        a1, p, a2, n = indices_tuple
        if min(len(a1), len(a2)) == 0 or self._formula.replaced_in(self) or numel(self.temperature) != 1:
            return super().pair_based_loss(mat, indices_tuple)
        sign = 1 if self.distance.is_inverted else -1
        positives, negatives = (sign * widen(mat[pairs]) / self.temperature for pairs in ((a1, p), (a2, n)))
        terms = -logsigmoid(positives - lse_by_anchor(negatives, a2, len(mat)).index_select(0, a1))
        losses = rounded_as_there(terms).to(mat.dtype)
        return {"loss": {"losses": losses, "indices": (a1, p), "reduction_type": "pos_pair"}}

    def _why_no_sums(self, problem: Compared | None = None) -> str:
        if LOSSES is None:
            return ""
        reducer = self._reducer()
        kind = kind_of(reducer)
        if kind == "PerAnchorReducer":
            # the library's has a column for each anchor and fails at references beyond
            beyond = problem is not None and len((problem.cols or problem.rows).z) > len(problem.rows.z)
            if beyond or not is_theirs(reducer.aggregation_func):
                return f"reducer={kind}"
        elif kind not in ("MeanReducer", "SumReducer", "ClassWeightedReducer"):
            return f"reducer={type(reducer).__name__}"
        return "collect_stats=True" if reducer.collect_stats else ""

    def _reducer(self) -> Any:
        """That of the pairs, where there is one of the embeddings, too."""
        reducer = self.reducer
        if type(reducer).__name__ == "MultipleReducers" and kind_of(reducer):
            return dict(reducer.reducers.items()).get("loss", reducer.default_reducer)
        return reducer

    def _reduced(
        self, sweep: dict[str, Any], stats: PairStats, most: int, n_positives: int, labels: Tensor | None
    ) -> dict[str, Any]:
        if most == 1:
            terms = -logsigmoid(stats.pos_sum - stats.lse).masked_fill(stats.pos_count == 0, 0.0)
        else:
            # an anchor without negatives has a bias of +inf, and terms of 0
            bias = -stats.lse if (squares := sweep.pop("row_bias", None)) is None else squares - stats.lse
            terms = pair_sum(negatives=Pairs.NONE, positives=Pairs.POSITIVE, row_bias=bias, **sweep)
        reducer = self._reducer()
        kind = type(reducer).__name__  # the library's own
        if kind == "PerAnchorReducer":
            return by_anchor(terms / stats.pos_count.clamp_min(1))
        if kind == "ClassWeightedReducer":
            terms = terms * reducer.weights.to(terms)[labels]
        loss = terms.sum() if kind == "SumReducer" else terms.sum() / n_positives
        return {"losses": loss, "indices": None, "reduction_type": "already_reduced"}


class SupConLoss(OverTemperature, FusedMatrixLoss, _SupConBase):
    r"""pytorch-metric-learning's ``SupConLoss``: the points of one class attract each other.

    With ``s_ij = <u_i, u_j> / temperature``, P(i) the other points of i's class and A(i) all other points::

        term_i = log sum_{a in A(i)} exp s_ia  -  mean_{p in P(i)} s_ip        (0 where P(i) is empty)

    The default ``AvgNonZeroReducer`` leaves terms of 0 out of the mean, unlike the authors' code: anchors without
    positives, and those with a term below 6e-8, which float32 rounds away. Other reducers are given all terms, too.
    No two classes or no positive pair, and one positive beside one negative pair, give 0 with a graph. Half embeddings
    are summed in float32 and the result is rounded to their dtype, under autocast to the library's.

    One sweep over the similarities and O(n) numbers. The cosine similarity and the dot product, any ``p``, and
    ``LpDistance(power=2)`` are fused with every reducer, as is an ``indices_tuple`` that lists all pairs. Of another
    list the library computes the matrix of similarities, and P listed pairs take O(P) numbers besides. Other distances
    and powers, ``collect_stats`` and methods that a subclass overrides run the library's code, with a
    ``FallbackWarning``.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n], ``ref_emb`` [m, d] and ``ref_labels`` [m]; a scalar.

    Raises:
        ValueError, RuntimeError: as :class:`NTXentLoss`.
    """

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(temperature=temperature, **kwargs)

    def _reduced(
        self, sweep: dict[str, Any], stats: PairStats, most: int, n_positives: int, labels: Tensor | None
    ) -> dict[str, Any]:
        return by_anchor(self._terms(stats))

    def _listed(self, n: int, positives: tuple[Tensor, Tensor], negatives: tuple[Tensor, Tensor]) -> Tensor | None:
        (near, a1), (far, a2) = positives, negatives
        if min(len(a1), len(a2)) == 0:
            return None
        near, far = near * self._factor(), far * self._factor()
        sums = torch.zeros(n, dtype=near.dtype, device=near.device).index_add(0, a1, near)
        count = torch.bincount(a1, minlength=n).to(near.dtype)
        return self._terms(PairStats(lse_by_anchor(far, a2, n), lse_by_anchor(near, a1, n), sums, count))

    def _terms(self, stats: PairStats) -> Tensor:
        count = stats.pos_count
        of_positives = zero_if_empty(stats.pos_lse)
        spread = (of_positives - stats.pos_sum / count.clamp_min(1)).masked_fill(count <= 1, 0.0)
        terms = (spread - logsigmoid(of_positives - stats.lse)).masked_fill(count == 0, 0.0)
        return rounded_as_there(terms)


NTXentLoss._formula = Hooks(NTXentLoss, "pair_based_loss", "_compute_loss")
SupConLoss._formula = Hooks(SupConLoss, "mat_based_loss", "_compute_loss")


def rounded_as_there(terms: Tensor) -> Tensor:
    """Terms that are 0 where 1 + x is 1 to the library, and left out by a mean over those that are not 0."""
    rounded_away = terms <= torch.finfo(terms.dtype).eps / 2
    return torch.where(rounded_away, terms - terms.detach(), terms)
