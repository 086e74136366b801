# SPDX-License-Identifier: Apache-2.0
"""The engine: reductions over the logits of all pairs of points, which are never stored.

Losses are made of ``pair_stats`` and ``pair_sum``; ``pair_cross_entropy`` is the most common one. Their gradient rules
are in :mod:`pycl.ops.autograd`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import MAPS, N_RESULTS, Problem, accumulation_dtype
from pycl.core.tracing import needs_dispatch
from pycl.distributed.ranks import Agreement, Group
from pycl.engine.modifiers import Modified, kinds_of, with_roles_apart
from pycl.engine.reduction import check_reduction, share_of, zero_if_empty
from pycl.engine.validation import check_choice, check_count, check_positive_weight, check_slopes, problem_of
from pycl.ops.autograd import StatsFunction, SumFunction, apply, fused_loss, wants_gradient
from pycl.ops.sharded import Sharded, sharded

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

__all__ = ["PairStats", "Pairs", "Points", "pair_cross_entropy", "pair_stats", "pair_sum"]


SIDES = ("rows", "both")


class PairStats(NamedTuple):
    """Statistics of one anchor's logits, one entry per anchor, float32 (float64 for float64 input).

    An anchor without pairs in a set has a log-sum-exp of ``-inf``, a sum and a count of 0, and no gradient from it.
    With S slopes both log-sum-exps have the shape [S, m].
    """

    lse: Tensor  # log sum exp l_ij over the denominator set
    pos_lse: Tensor  # log sum exp l_ij over the positive set
    pos_sum: Tensor  # sum l_ij over the positive set
    pos_count: Tensor  # number of positive pairs


@overload
def pair_stats(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    denominator: Pairs,
    positives: Pairs = Pairs.NONE,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    sides: Literal["rows"] = "rows",
    normalize: bool = False,
    slopes: Sequence[float] | None = None,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> PairStats: ...
@overload
def pair_stats(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    denominator: Pairs,
    positives: Pairs = Pairs.NONE,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    sides: Literal["both"],
    normalize: bool = False,
    slopes: Sequence[float] | None = None,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> tuple[PairStats, PairStats]: ...
def pair_stats(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    denominator: Pairs,
    positives: Pairs = Pairs.NONE,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    sides: Literal["rows", "both"] = "rows",
    normalize: bool = False,
    slopes: Sequence[float] | None = None,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> PairStats | tuple[PairStats, PairStats]:
    r"""Log-sum-exps and sums of the logits of every anchor over two pair sets.

    .. math:: l_{ij} = \mathrm{logit\_scale}_i \langle x_i, y_j \rangle + \mathrm{row\_bias}_i + \mathrm{col\_bias}_j

    With ``slopes`` there is a log-sum-exp of each multiple of the logits, from one product:

    .. math:: \mathrm{lse}_{si} = \log \sum_j e^{\mathrm{slope}_s l_{ij}}, \qquad
              \frac{\partial}{\partial l_{ij}} \sum_s g_s \mathrm{lse}_{si}
              = \sum_s g_s \, \mathrm{slope}_s \, e^{\mathrm{slope}_s l_{ij} - \mathrm{lse}_{si}}

    Negatives weighted by :math:`e^{\beta l}` take the slopes (beta, 1 + beta): Robinson et al., "Contrastive Learning
    with Hard Negative Samples", 2021.

    Args:
        rows: the anchors, ``z`` [m, d] in float32, float64, bfloat16 or float16.
        cols: the candidates, ``z`` [n, d]; ``None`` compares the anchors with themselves, and with a scalar scale
            and one bias for both roles only the half of the matrix on and above the diagonal is computed.
        logit_scale: 1 / temperature; a number, or a tensor of shape [] or [m].
        denominator: the pair set of ``lse``.
        positives: the pair set of ``pos_lse``, ``pos_sum`` and ``pos_count``.
        row_bias: [m] added to the logits of each anchor.
        col_bias: [n] added to the logits of each candidate.
        offset: anchor i is the same point as candidate ``i + offset``; ``None`` for disjoint sets without a self pair.
        sides: ``"both"`` returns the statistics of the candidates too, from the same sweep.
        normalize: divide every embedding by ``max(norm, 1e-12)`` first, inside the kernel.
        slopes: one to eight positive numbers; ``lse`` and ``pos_lse`` are then [S, m], those of each slope times the
            logits after all that changes them. ``pos_sum`` and ``pos_count`` stay those of the logits.
        group: the candidates are the ``cols`` of all ranks (all ranks' rows where ``cols`` is None), a process group or
            ``pycl.distributed.Ring``. ``offset`` counts within this rank; ids are compared as they are, and ``None``
            numbers the points of all ranks. Gradients are those of the sum over the ranks.
        backend: ``None`` for the automatic choice, or ``"cpu" | "triton" | "cuda" | "reference"``.
        changes: ``modifiers``, ``col_scale``, ``score_mod`` and ``score_mod_args`` change the logits:
            :class:`pycl.engine.Modified`.

    Returns:
        ``PairStats`` of the rows, or with ``sides="both"`` those of the rows and of the columns. Differentiable once
        with respect to both ``z``, ``logit_scale`` and both biases.

    Raises:
        TypeError: embeddings that are not floating point, ids or views that are not integers, pair sets that are not
            ``Pairs``, slopes that are not a sequence of numbers.
        ValueError: shapes that do not fit, tensors on different devices, an unknown ``sides`` or ``backend``, slopes
            that are not positive and finite.
        RuntimeError: a backend that is not built; a second derivative; another rank that failed.
    """
    check_choice("sides", sides, SIDES)
    sets = {"denominator": denominator, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, group, **changes)
    factors = check_slopes(slopes, accumulation_dtype(args.rows.dtype))
    args = with_roles_apart(args) if sides == "both" or group is not None else args
    name = backend_of(args, backend)
    both = sides == "both" and args.cols is not None
    facts = {"slopes": str(factors)} if factors and group is not None else {}  # what is traced has no str of a number
    args, shards = sharded(group, "pair_stats", args, both, **facts)
    stats = apply(StatsFunction, *args, factors, both, wants_gradient(args), name, shards)
    of_rows = PairStats(*stats[:N_RESULTS])
    if sides == "rows":
        return of_rows
    return of_rows, PairStats(*stats[N_RESULTS : 2 * N_RESULTS]) if both else of_rows


def agreed_stats(
    rows: Points,
    cols: Points | None,
    logit_scale: float | Tensor,
    *,
    denominator: Pairs,
    positives: Pairs = Pairs.NONE,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    normalize: bool = False,
    group: Group | None = None,
    backend: str | None = None,
    **facts: str,
) -> tuple[PairStats, Agreement | None]:
    """``pair_stats`` of the rows, and what the ranks of a group have agreed on to compute them.

    A loss that counts the anchors of all ranks afterwards, for a mean, lets them meet once this way. The ranks compare
    ``facts`` too: what else the loss was asked for.
    """
    sets = {"denominator": denominator, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, group)
    name = backend_of(args, backend)
    args, shards = sharded(group, "pair_stats", args, False, **facts)
    stats = apply(StatsFunction, *args, (), False, wants_gradient(args), name, shards)
    return PairStats(*stats[:N_RESULTS]), agreement_of(shards)


def agreement_of(shards: Sharded | None) -> Agreement | None:
    return None if shards is None else shards.agreement


def pair_cross_entropy(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    denominator: Pairs,
    positives: Pairs,
    n_positives: int = 1,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    sides: Literal["rows", "both"] = "rows",
    normalize: bool = False,
    reduction: str = "none",
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> Tensor:
    r"""Softmax cross entropies of every anchor with its positives.

    .. math:: \mathrm{term}_i = \log \sum_{j \in \mathrm{denominator}(i)} e^{l_{ij}}
              - \frac{1}{\mathrm{n\_positives}} \sum_{p \in \mathrm{positives}(i)} l_{ip}

    The log-sum-exp of an empty denominator counts as 0, as of an anchor all of whose pairs were dropped. With
    ``sides="both"`` the first part is the mean of two log-sum-exps, of anchor i and of candidate i.

    Args:
        n_positives: how many positives every anchor has, and every candidate where both sides count; at least 1.
        reduction: ``"none"``, or ``"mean"`` or ``"sum"`` over the anchors. On a CPU the gradients of a float32 or
            float64 problem then come with the value, from one call, and the backward only scales them.
        rows: the other arguments, and the errors from them, are those of ``pair_stats``.

    Returns:
        [m], or a scalar with a mean or a sum; float32 (float64 for float64 input). With a ``group`` each rank returns a
        share: the average of the ranks' scalars is the value over all ranks' anchors.

    Raises:
        TypeError: an n_positives that is no integer.
        ValueError: an unknown reduction, n_positives below 1, both sides of a matrix that is not square.
    """
    check_choice("sides", sides, SIDES)
    n_positives = check_count("n_positives", n_positives)
    check_reduction(reduction)
    sets = {"denominator": denominator, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, group, **changes)
    args = with_roles_apart(args) if sides == "both" or group is not None else args
    n = args.rows.shape[0]
    if sides == "both" and args.n_cols() != n:
        raise ValueError(f"sides='both' takes as many cols as rows, got {args.n_cols()} and {n}")
    name = backend_of(args, backend)
    both = sides == "both" and args.cols is not None
    if reduction != "none" and group is None and can_fuse("pair_cross_entropy_fused", args, name):
        weight = (0.5 if both else 1.0) / (n if reduction == "mean" else 1)
        return fused_loss("pair_cross_entropy_fused", args, (both, weight, -weight / n_positives), name)
    args, shards = sharded(group, "pair_cross_entropy", args, both, reduction=reduction)
    stats = apply(StatsFunction, *args, (), both, wants_gradient(args), name, shards)
    of_rows = PairStats(*stats[:N_RESULTS])
    lses = [of_rows.lse, stats[N_RESULTS]] if both else [of_rows.lse]
    drops = args.modifiers or args.row_bias is not None or args.col_bias is not None  # a bias of -inf drops pairs
    if positives & ~denominator or drops:
        lses = [zero_if_empty(lse) for lse in lses]
    lse = (lses[0] + lses[1]) / 2 if both else lses[0]
    terms = torch.sub(lse, of_rows.pos_sum, alpha=1 / n_positives)
    return share_of(terms, reduction, agreement_of(shards))


@overload
def pair_sum(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    negatives: Pairs,
    positives: Pairs = Pairs.NONE,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    map: Literal["softplus", "square", "relu", "exp", "logit_exp"] = "softplus",
    positive_weight: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "none",
    return_counts: Literal[False] = False,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> Tensor: ...
@overload
def pair_sum(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    negatives: Pairs,
    positives: Pairs = Pairs.NONE,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    map: Literal["softplus", "square", "relu", "exp", "logit_exp"] = "softplus",
    positive_weight: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "none",
    return_counts: Literal[True],
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> tuple[Tensor, Tensor]: ...
def pair_sum(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    negatives: Pairs,
    positives: Pairs = Pairs.NONE,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    map: Literal["softplus", "square", "relu", "exp", "logit_exp"] = "softplus",
    positive_weight: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "none",
    return_counts: bool = False,
    group: Group | None = None,
    backend: str | None = None,
    **changes: Unpack[Modified],
) -> Tensor | tuple[Tensor, Tensor]:
    r"""A map of the logits summed over every anchor's pairs: binary logistic losses, squares, hinges, exponentials.

    .. math:: \sum_{j \in \mathrm{negatives}(i)} \mathrm{map}(l_{ij})
              + w_i \sum_{j \in \mathrm{positives}(i)} \mathrm{map}(-l_{ij})

    A threshold or a margin is a bias: ``relu`` with a ``row_bias`` of m sums ``max(0, m + l)`` over the negatives. A
    logit of ``-inf`` is in no sum.

    Args:
        map: ``"softplus"``, ``log(1 + exp l)`` (SigLIP); ``"square"``, ``l^2`` (spectral losses); ``"relu"``,
            ``max(0, l)`` (hinges), whose slope at 0 is 0; ``"exp"``, infinity where that is beyond the range;
            ``"logit_exp"``, ``l exp l``: of log-probabilities, minus an entropy.
        positive_weight: ``w``, floating point [m], a constant without a gradient; None is 1. With 1 / the number of its
            positives an anchor takes their mean. A weight of 0 drops an anchor's positives, also where map(-l) is
            infinite.
        reduction: ``"none"``, or ``"mean"`` or ``"sum"`` over the anchors. On a CPU, in float32 and float64, the
            gradients then come with the value: three matrix products instead of four.
        return_counts: also return how many terms of every anchor are not 0, as triplet losses divide by.
        rows: the other arguments, and the errors from them, are those of ``pair_stats``.

    Returns:
        As ``pair_cross_entropy``; with ``return_counts`` a tuple of that and the counts [m], which have no gradient and
        are over the candidates of all ranks.

    Raises:
        TypeError: a positive_weight that is no floating-point tensor.
        ValueError: an unknown map or reduction, a positive_weight of another shape or device, or one that requires a
            gradient.
    """
    check_choice("map", map, MAPS)
    check_reduction(reduction)
    sets = {"negatives": negatives, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, group, **changes)
    args = args.as_rectangular()
    weight = check_positive_weight(positive_weight, args)
    name = backend_of(args, backend)
    if reduction != "none" and not return_counts and group is None and can_fuse("pair_sum_fused", args, name):
        of_sum = 1 / len(args.rows) if reduction == "mean" else 1.0
        return fused_loss("pair_sum_fused", args, (map, weight, of_sum), name)
    args, shards = sharded(group, "pair_sum", args, map=map, reduction=reduction, positive_weight=weight is not None)
    terms, counts, _ = apply(SumFunction, *args, map, weight, return_counts, wants_gradient(args), name, shards)
    value = share_of(terms, reduction, agreement_of(shards))
    return (value, counts) if return_counts else value


def backend_of(args: Problem, asked: str | None) -> str:
    """The backend for a problem: the one that was asked for, or the choice."""
    return registry.choose(asked, args.rows.device.type, args.rows.dtype, modifiers=kinds_of(args))


def can_fuse(operator: str, args: Problem, backend: str) -> bool:
    """Whether a value is to come from one call, with its gradients where such are wanted.

    Not those of half types: they may leave their range before they are scaled. Not where a graph is traced.
    """
    halves = args.rows.dtype not in (torch.float32, torch.float64)
    if (halves and wants_gradient(args)) or needs_dispatch(args.used_leaves()):
        return False
    return registry.has(backend, operator)
