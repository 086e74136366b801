# SPDX-License-Identifier: Apache-2.0
"""``NTXentLoss`` and ``SupConLoss`` of pytorch-metric-learning over all pairs, without a list or a matrix of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.compat._common import as_input
from pycl.compat._peer import Hooks, fall_back, find_peer
from pycl.core.pairs import Pairs, Points
from pycl.engine.reduction import zero_if_empty
from pycl.engine.reductions import PairStats, pair_stats, pair_sum
from pycl.functional._common import Scalar, widen

from ._alone import LossAlone, need_library
from ._pairs import LISTED, AllPairs, Compared, compared, lse_by_anchor, written
from ._parts import is_theirs, kind_of, why_no_cosine

_LOSSES: Any = find_peer("pytorch_metric_learning.losses")
_PairBase: Any = _LOSSES.GenericPairLoss if _LOSSES else LossAlone
_NTXentBase: Any = _LOSSES.NTXentLoss if _LOSSES else LossAlone
_SupConBase: Any = _LOSSES.SupConLoss if _LOSSES else LossAlone


class FusedLoss(_PairBase):
    """A loss whose sums over all pairs are the engine's, wherever its options allow that."""

    _method: str  # of the library: makes terms of a list of pairs, or of matrices
    _formula: Hooks

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        loss = super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return as_input(loss, embeddings) if isinstance(loss, Tensor) else loss  # DoNothingReducer gives a dict

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> dict[str, Any]:
        if labels is None and indices_tuple is None:
            raise ValueError("labels or an indices_tuple must be given, got neither")
        if embeddings.dim() != 2 or ref_emb.dim() != 2:
            shapes = tuple(embeddings.shape), tuple(ref_emb.shape)
            raise ValueError(f"embeddings and ref_emb must have shape [n, d], got {shapes[0]} and {shapes[1]}")
        problem = compared(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if why := self._why_not(problem):
            if _LOSSES is None:
                need_library(f"{type(self).__name__} with {why}")
            if why not in LISTED or self._method != "pair_based_loss":
                fall_back(type(self).__name__, why)
            if isinstance(indices_tuple, AllPairs):
                indices_tuple = written(indices_tuple, labels, ref_labels)
            return cast("dict[str, Any]", super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels))
        assert isinstance(problem, Compared)
        if problem.n_pairs == 0 or embeddings.numel() == 0:
            return self._nothing()
        if not (isinstance(indices_tuple, AllPairs) or problem.cols is None or ref_emb.requires_grad):
            # a queue's, which may be written into before the backward: the library has normalised copies by then
            z, ids = problem.cols.z, problem.cols.ids
            problem = problem._replace(cols=Points(z.clone(), None if ids is None else ids.clone()))
        sweep = self._sweep(problem)
        stats = pair_stats(denominator=Pairs.NEGATIVE, positives=Pairs.POSITIVE, **sweep)
        counts = stats.pos_count
        most, n_positives = (int(n) for n in torch.stack([counts.max(), counts.sum(dtype=torch.float64)]).tolist())
        n_negatives = problem.n_pairs - n_positives
        # the library counts one positive beside one negative as nothing, too
        if min(n_positives, n_negatives) == 0 or n_positives == n_negatives == 1:
            return self._nothing()
        info = self._info(sweep, stats, most, n_positives, labels)
        if torch.is_autocast_enabled(embeddings.device.type):
            info["losses"] = as_input(info["losses"], embeddings, "product")
        return {"loss": info}

    def _pycl_why_not(self) -> str:
        """Why this loss runs the library's code whatever it is given, or nothing."""
        return self._why_never() or self._why_no_sums()

    def _why_not(self, problem: Compared | str) -> str:
        """Why this loss runs the library's code, the pairs last of all."""
        return self._why_never() or (problem if isinstance(problem, str) else self._why_no_sums(problem))

    def _why_never(self) -> str:
        if isinstance(self.temperature, Tensor):
            if self.temperature.numel() != 1:
                return "a temperature of several entries"
        elif self.temperature == 0:
            return "a temperature of 0"
        if _LOSSES is None:
            return ""
        if self._formula.replaced_in(self) or self.loss_method != getattr(self, self._method):
            return "a formula of its own"
        if self._assert_either_pos_or_neg is not _PairBase._assert_either_pos_or_neg:
            return "a check of its own"
        return why_no_cosine(self.distance)

    def _why_no_sums(self, problem: Compared | None = None) -> str:
        """Why its reducer must see the term of every pair."""
        return ""

    def _sweep(self, problem: Compared) -> dict[str, Any]:
        """The engine's arguments."""
        rows, cols, offset = problem
        temperature, distance = self.temperature, self.distance
        learned = isinstance(temperature, Tensor)
        scale: Scalar = 1.0 / (widen(temperature).reshape(()) if learned else float(temperature))
        normalize = distance is None or bool(distance.normalize_embeddings)
        if normalize and distance is not None and distance.p != 2:
            rows = rows._replace(z=distance.normalize(widen(rows.z)))
            cols = None if cols is None else cols._replace(z=distance.normalize(widen(cols.z)))
            normalize = False
        return {"rows": rows, "cols": cols, "logit_scale": scale, "offset": offset, "normalize": normalize}

    def _nothing(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.zero_losses())


class NTXentLoss(FusedLoss, _NTXentBase):
    r"""pytorch-metric-learning's ``NTXentLoss``: every positive pair against the negatives of its anchor.

    With ``s_ij = <u_i, u_j> / temperature``, over all pairs (i, p) of one class, N(i) the points of other classes::

        loss = mean_(i,p) [ log( exp s_ip + sum_{n in N(i)} exp s_in ) - s_ip ]

    The other positives of an anchor are not in its denominator. The library has one row of N(i) for each positive
    pair, O(n^3) numbers for n points of classes of two; here it is one sweep over the similarities where no anchor has
    more than one positive and two sweeps elsewhere, and O(n) numbers.

    No two classes or no positive pair, and one positive beside one negative pair, give 0 with a graph. Half embeddings
    are summed in float32 and the result is rounded to their dtype, under autocast to the library's; the library's
    float16 loses every exponential below 6e-5, and its float32 stops at a term of 87.

    The cosine similarity and the dot product, any ``p``, are fused with ``MeanReducer``, ``SumReducer``,
    ``ClassWeightedReducer`` and ``PerAnchorReducer``, as is an ``indices_tuple`` that lists all pairs. Of another list,
    as a miner's or one without labels, the library computes the matrix of similarities, as the miner did; sums over
    P listed pairs take O(P) numbers, where the library has a row of all negatives for each positive. The same pairs
    given by labels and as a list agree to the rounding of the dtype. Other distances, powers and reducers,
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
        if _LOSSES is None:
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

    def _info(
        self, sweep: dict[str, Any], stats: PairStats, most: int, n_positives: int, labels: Tensor
    ) -> dict[str, Any]:
        if most == 1:
            terms = -logsigmoid(stats.pos_sum - stats.lse).masked_fill(stats.pos_count == 0, 0.0)
        else:
            # an anchor without negatives has a bias of +inf, and terms of 0
            terms = pair_sum(negatives=Pairs.NONE, positives=Pairs.POSITIVE, row_bias=-stats.lse, **sweep)
        reducer = self._reducer()
        kind = type(reducer).__name__  # the library's own
        if kind == "PerAnchorReducer":
            return _by_anchor(terms / stats.pos_count.clamp_min(1))
        if kind == "ClassWeightedReducer":
            terms = terms * reducer.weights.to(terms)[labels]
        loss = terms.sum() if kind == "SumReducer" else terms.sum() / n_positives
        return {"losses": loss, "indices": None, "reduction_type": "already_reduced"}


class SupConLoss(FusedLoss, _SupConBase):
    r"""pytorch-metric-learning's ``SupConLoss``: the points of one class attract each other.

    With ``s_ij = <u_i, u_j> / temperature``, P(i) the other points of i's class and A(i) all other points::

        term_i = log sum_{a in A(i)} exp s_ia  -  mean_{p in P(i)} s_ip        (0 where P(i) is empty)

    The default ``AvgNonZeroReducer`` leaves terms of 0 out of the mean, unlike the authors' code: anchors without
    positives, and those with a term below 6e-8, which float32 rounds away. Other reducers are given all terms, too.
    No two classes or no positive pair, and one positive beside one negative pair, give 0 with a graph. Half embeddings
    are summed in float32 and the result is rounded to their dtype, under autocast to the library's.

    One sweep over the similarities and O(n) numbers. The cosine similarity and the dot product, any ``p``, are fused
    with every reducer, as is an ``indices_tuple`` that lists all pairs. Other distances, powers and lists,
    ``collect_stats`` and methods that a subclass overrides run the library's code, with a ``FallbackWarning``.

    Shape:
        ``embeddings`` [n, d] and ``labels`` [n], ``ref_emb`` [m, d] and ``ref_labels`` [m]; a scalar.

    Raises:
        ValueError, RuntimeError: as :class:`NTXentLoss`.
    """

    _method = "mat_based_loss"

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(temperature=temperature, **kwargs)

    def _info(
        self, sweep: dict[str, Any], stats: PairStats, most: int, n_positives: int, labels: Tensor
    ) -> dict[str, Any]:
        count = stats.pos_count
        of_positives = zero_if_empty(stats.pos_lse)
        spread = (of_positives - stats.pos_sum / count.clamp_min(1)).masked_fill(count <= 1, 0.0)
        terms = (spread - logsigmoid(of_positives - stats.lse)).masked_fill(count == 0, 0.0)
        return _by_anchor(rounded_as_there(terms))


NTXentLoss._formula = Hooks(NTXentLoss, "pair_based_loss", "_compute_loss")
SupConLoss._formula = Hooks(SupConLoss, "mat_based_loss", "_compute_loss")


def numel(number: Any) -> int:
    """Of a tensor; a number is one entry."""
    return number.numel() if isinstance(number, Tensor) else 1


def rounded_as_there(terms: Tensor) -> Tensor:
    """Terms that are 0 where 1 + x is 1 to the library, and left out by a mean over those that are not 0."""
    rounded_away = terms <= torch.finfo(terms.dtype).eps / 2
    return torch.where(rounded_away, terms - terms.detach(), terms)


def _by_anchor(terms: Tensor) -> dict[str, Any]:
    return {"losses": terms, "indices": torch.arange(len(terms), device=terms.device), "reduction_type": "element"}
