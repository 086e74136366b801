# SPDX-License-Identifier: Apache-2.0
"""What the losses of pytorch-metric-learning on pycl's engine share: the dtype of a result, the way to its own code."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from pycl.compat._common import as_input
from pycl.compat._peer import Hooks, fall_back, find_peer
from pycl.core.pairs import Points
from pycl.functional._common import Scalar, widen

from ._alone import LossAlone, need_library
from ._logits import why_no_logits
from ._pairs import LISTED, AllPairs, Compared, compared, distinct, written

LOSSES: Any = find_peer("pytorch_metric_learning.losses")
_Base: Any = LOSSES.BaseMetricLossFunction if LOSSES else LossAlone
_PairBase: Any = LOSSES.GenericPairLoss if LOSSES else LossAlone
_CHECK = "_assert_either_pos_or_neg"  # which version 2.0 has not


class Rounded(_Base):
    """Stands before a class of the library, whose ``forward`` then returns the dtype of the embeddings."""

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


class FusedLoss(Rounded):
    """A loss whose ``compute_loss`` is the engine's wherever its options allow that."""

    _formula: Hooks

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> dict[str, Any]:
        given = embeddings, labels, indices_tuple, ref_emb, ref_labels
        refused = labels is None or ref_emb is not embeddings or ref_labels is not labels or embeddings.dim() != 2
        if refused or embeddings.numel() == 0:
            return self._as_there(*given)
        assert labels is not None
        if why := self._why_never() or self._why_not(embeddings, labels):
            fall_back(type(self).__name__, why)
            return self._as_there(*given)
        return self._fused(embeddings, labels, indices_tuple)

    def _as_there(self, *given: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", super().compute_loss(*given))  # the library's

    def _pycl_why_not(self) -> str:
        """Why this loss runs the library's code whatever it is given, or nothing."""
        return self._why_never()

    def _why_never(self) -> str:
        return "a formula of its own" if self._formula.replaced_in(self) else self._why_option()

    def _why_option(self) -> str:
        """Why an option has no fused form, or nothing."""
        return ""

    def _why_not(self, embeddings: Tensor, labels: Tensor) -> str:
        """Why a call has no fused form, or nothing."""
        return ""

    def _fused(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> dict[str, Any]:
        raise NotImplementedError


class FusedPairLoss(Rounded, _PairBase):
    """A loss whose sums over all pairs are the engine's, wherever its options allow that."""

    _method: str  # of the library: makes terms of a list of pairs, or of matrices
    _takes_lists = True  # that method is pycl's
    _formula: Hooks

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
            if LOSSES is None:
                need_library(f"{type(self).__name__} with {why}")
            if why not in LISTED or not self._takes_lists:
                fall_back(type(self).__name__, why)
            if isinstance(indices_tuple, AllPairs):
                indices_tuple = written(indices_tuple, labels, ref_labels)
            return cast("dict[str, Any]", super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels))
        assert isinstance(problem, Compared)
        if problem.n_pairs == 0 or embeddings.numel() == 0:
            return self._nothing()
        if not (isinstance(indices_tuple, AllPairs) or problem.cols is None):
            problem = problem._replace(cols=kept(problem.cols))
        info = self._info(problem, labels)
        if info is None:
            return self._nothing()
        info["losses"] = under_autocast(info["losses"], embeddings, self.distance)
        return {"loss": info}

    def _info(self, problem: Compared, labels: Tensor | None) -> dict[str, Any] | None:
        """What the library's reducers take; None where the library takes the pairs for none."""
        raise NotImplementedError

    def _pycl_why_not(self) -> str:
        """Why this loss runs the library's code whatever it is given, or nothing."""
        return self._why_never() or self._why_no_sums()

    def _why_not(self, problem: Compared | str) -> str:
        """Why this loss runs the library's code, the pairs last of all."""
        return self._why_never() or (problem if isinstance(problem, str) else self._why_no_sums(problem))

    def _why_never(self) -> str:
        if why := self._why_option():
            return why
        if LOSSES is None:
            return ""
        if self._formula.replaced_in(self) or self.loss_method != getattr(self, self._method):
            return "a formula of its own"
        if getattr(self, _CHECK, None) is not getattr(_PairBase, _CHECK, None):
            return "a check of its own"
        return self._why_no_logits()

    def _why_option(self) -> str:
        """Why a number among the options has no fused form, or nothing."""
        return ""

    def _why_no_logits(self) -> str:
        """Why the distance has no fused form, or nothing."""
        return why_no_logits(self.distance, squares=True)

    def _why_no_sums(self, problem: Compared | None = None) -> str:
        """Why its reducer must see the term of every pair, or nothing."""
        return ""

    def _nothing(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.zero_losses())


class FusedMatrixLoss(FusedPairLoss):
    """A loss of which the library has matrices, with those of listed pairs among them."""

    _method = "mat_based_loss"

    def mat_based_loss(self, mat: Tensor, indices_tuple: tuple[Tensor, ...]) -> Any:
        """As the library, from a matrix of similarities or distances and a list of pairs, in O(pairs) more numbers."""
        a1, p, a2, n = indices_tuple
        positives, negatives = distinct(a1, p, mat), distinct(a2, n, mat)
        if self._why_never() or bool(torch.isin(positives, negatives).any()):  # which the library refuses
            return super().mat_based_loss(mat, indices_tuple)
        width, flat = mat.shape[1], widen(mat).flatten()
        scores = flat[positives], flat[negatives]
        terms = self._listed(len(mat), (scores[0], positives // width), (scores[1], negatives // width))
        return self._nothing() if terms is None else {"loss": by_anchor(terms.to(mat.dtype))}

    def _listed(self, n: int, positives: tuple[Tensor, Tensor], negatives: tuple[Tensor, Tensor]) -> Tensor | None:
        """The terms of n anchors, from what the distance gives for pairs and their anchors; None for nothing."""
        raise NotImplementedError


def kept(refs: Points) -> Points:
    """A copy of constants, as of a queue, which may be written into before the backward.

    The library has copies at unit length by then.
    """
    return refs if refs.z.requires_grad else Points(refs.z.clone(), None if refs.ids is None else refs.ids.clone())


def by_anchor(terms: Tensor) -> dict[str, Any]:
    """What the library's reducers take of one term for each anchor."""
    return {"losses": terms, "indices": torch.arange(len(terms), device=terms.device), "reduction_type": "element"}


def under_autocast(losses: Tensor, embeddings: Tensor, distance: Any, product: str = "product") -> Tensor:
    """Terms in the dtype of the library's under autocast, where they have that of similarities or distances."""
    if not torch.is_autocast_enabled(embeddings.device.type):
        return losses
    if distance is None or distance.is_inverted:
        return as_input(losses, embeddings, product)
    # torch.cdist makes float32; float16 is not given to it
    return as_input(losses, embeddings, "input" if embeddings.dtype == torch.float16 else "float32")


def numel(number: Any) -> int:
    """Of a tensor; a number is one entry."""
    return number.numel() if isinstance(number, Tensor) else 1


def why_several(**options: Any) -> str:
    """Why an option is neither a number nor a tensor of one entry; nothing where all are."""
    return next((f"a {name} of several entries" for name, value in options.items() if numel(value) != 1), "")


def why_no_number(**options: Any) -> str:
    """``why_several`` that takes no number 0 either."""
    zeros = (f"a {name} of 0" for name, value in options.items() if not isinstance(value, Tensor) and value == 0)
    return why_several(**options) or next(zeros, "")


def scalar(value: Any) -> Scalar:
    """A number, or a tensor without dimensions in at least float32."""
    return widen(value).reshape(()) if isinstance(value, Tensor) else float(value)
