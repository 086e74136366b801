# SPDX-License-Identifier: Apache-2.0
"""GradCache's losses: queries find their passages among all, as in ``grad_cache.loss``."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from pycl.compat._common import as_input, check_even, nothing, of_one_dtype
from pycl.compat._open_clip_ranks import over_all_rows, world
from pycl.compat._peer import Hooks, fall_back, find_peer
from pycl.compat.grad_cache import _alone
from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import Group, Ranks, together
from pycl.engine.reduction import check_reduction, share_of
from pycl.engine.reductions import pair_cross_entropy, pair_stats
from pycl.functional._common import check_features, widen

__all__ = ["ContrastiveLossWithQueryClosure", "DistributedContrastiveLoss", "SimpleContrastiveLoss"]

peer: Any = find_peer("grad_cache.loss") or find_peer("gradcache.loss") or _alone
IGNORED = -100  # the target of a row that does not count, torch's default


class SimpleContrastiveLoss(peer.SimpleContrastiveLoss):
    r"""GradCache's ``SimpleContrastiveLoss``: every query finds its passage among those of all queries.

    With ``s_ij = <x_i, y_j>``, of vectors as they are given, and the passage t(i) of query i::

        term_i = log sum_j exp s_ij - s_{i t(i)}

    ``t(i) = i * (n_hard_negatives + 1)``: behind the passage of a query come its hard negatives. A ``target`` names
    others; a row whose target is -100 does not count, as in torch's cross entropy. No logit is stored. Targets that are
    probabilities run GradCache's code. For half vectors sums are in float32, and the loss is rounded to their dtype
    (float32 under autocast).

    Shape:
        ``x`` [N, d], ``y`` [M, d], ``target`` None or integers [N] below M; a scalar, or [N] with
        ``reduction="none"``.

    Raises:
        AssertionError: without a target, another number of passages than N * (n_hard_negatives + 1).
        IndexError: a target that is no row of ``y``.
        RuntimeError: vectors of two dtypes outside autocast.
        ValueError: an unknown reduction, vectors that are not [n, d] with one d.
    """

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        if target is not None and target.is_floating_point():
            fall_back(type(self).__name__, "targets that are probabilities")
            return cast("Tensor", super().__call__(x, y, target=target, reduction=reduction))
        check_reduction(reduction)
        x, y = of_one_dtype(x, y)
        check_features(x=x, y=y)
        if target is not None:
            return as_input(_of_targets(x, y, target, reduction), x)
        if len(x) * self.target_per_qry != len(y):
            per_query = f"{len(x)} queries of {self.target_per_qry} passages each"
            raise AssertionError(f"y must hold the passages of {per_query}, got {len(y)}: give a target otherwise")
        if len(x) == len(y) == 1:
            return as_input(nothing(x, y).expand(1 if reduction == "none" else ()), x)
        return as_input(_in_order(x, y, self.target_per_qry, reduction), x)


class DistributedContrastiveLoss(peer.DistributedContrastiveLoss, SimpleContrastiveLoss):
    r"""GradCache's ``DistributedContrastiveLoss``: :class:`SimpleContrastiveLoss` of the vectors of all ranks.

    Every rank returns the loss of all rows. Its gradient goes to the rank's own vectors alone: what
    DistributedDataParallel averages is 1 / W of the gradient of one process with all vectors, W the number of ranks, as
    in GradCache. Each rank computes its own rows; with a ``target``, which counts the rows of all ranks, and with
    ``reduction="none"`` it gathers the vectors and computes all of them. Ranks bring batches of one size.

    Raises:
        AssertionError: ``torch.distributed`` is not initialised when the loss is made.
        ValueError: batches of different sizes.
    """

    def __call__(self, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]  # as GradCache's own
        target, reduction = kwargs.get("target"), kwargs.get("reduction", "mean")
        own_gathering = bool(_GATHERING.replaced_in(self))
        if own_gathering or target is not None or reduction == "none" or self.target_per_qry * len(x) != len(y):
            return super().__call__(x, y, **kwargs)
        check_reduction(reduction)
        x, y = of_one_dtype(x, y)
        local = partial(_in_order, x, y, self.target_per_qry, reduction, group=world())
        return as_input(over_all_rows(local, (), gather_with_grad=False), x)


class ContrastiveLossWithQueryClosure(peer.ContrastiveLossWithQueryClosure, SimpleContrastiveLoss):
    """GradCache's ``ContrastiveLossWithQueryClosure``: :class:`SimpleContrastiveLoss`, whose queries may be computed by
    ``query_closure()`` when the loss is called with the passages alone.
    """


_GATHERING = Hooks(peer.DistributedContrastiveLoss, "gather_tensor")


@together
def _in_order(x: Tensor, y: Tensor, per_query: int, reduction: str, *, group: Group | None = None) -> Tensor:
    """Passages in the order of their queries, which is that of the ranks."""
    queries = passages = None  # each its own
    if per_query > 1:
        check_even(x, group=group)
        before = 0 if group is None else cast("Ranks", group).rank * len(y)
        passages = torch.arange(before, before + len(y), device=y.device)
        queries = passages[::per_query]
    return pair_cross_entropy(
        Points(x, queries),
        Points(y, passages),
        denominator=Pairs.ALL,
        positives=Pairs.POSITIVE,
        offset=None,
        reduction=reduction,
        group=group,
    )


def _of_targets(x: Tensor, y: Tensor, target: Tensor, reduction: str) -> Tensor:
    if target.shape != x.shape[:1]:
        raise ValueError(f"target must have shape ({len(x)},), one for each query, got {tuple(target.shape)}")
    counts = target != IGNORED
    own = (widen(x) * widen(y)[target.where(counts, 0)]).sum(1)
    lse = pair_stats(Points(x), Points(y), 1.0, denominator=Pairs.ALL, offset=None).lse
    terms = (lse - own).where(counts, 0)
    return share_of(terms, reduction, None) if reduction != "mean" else terms.sum() / counts.sum()
