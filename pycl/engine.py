# SPDX-License-Identifier: Apache-2.0
"""The engine: reductions over the logits of all pairs of points, which are never stored, and the logits themselves.

``pair_stats`` and ``pair_sum`` are the only two things a loss needs; ``pair_logits`` and ``pair_top`` are for looking
at the matrix. Their gradient rules are in ``autograd.py``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast, overload

import torch
from torch import Tensor

from . import backends
from .autograd import LogitsFunction, StatsFunction, SumFunction, WeightedSumFunction
from .distributed import Group, together
from .ops import STATS, Problem
from .pairs import Pairs, Points
from .sharded import sharded
from .validation import check_k, check_values, problem_of

__all__ = ["PairStats", "Pairs", "Points", "pair_average", "pair_logits", "pair_stats", "pair_sum", "pair_top"]


class PairStats(NamedTuple):
    """Statistics of one anchor's logits, one entry per anchor, float32 (float64 for float64 input).

    An anchor without pairs in a set has a log-sum-exp of ``-inf``, a sum and a count of 0, and no gradient from it.
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
    group: Group | None = None,
    backend: str | None = None,
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
    group: Group | None = None,
    backend: str | None = None,
) -> tuple[PairStats, PairStats]: ...
@together
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
    group: Group | None = None,
    backend: str | None = None,
) -> PairStats | tuple[PairStats, PairStats]:
    r"""Log-sum-exps and sums of the logits of every anchor over two pair sets.

    .. math:: l_{ij} = \mathrm{logit\_scale}_i \langle x_i, y_j \rangle + \mathrm{row\_bias}_i + \mathrm{col\_bias}_j

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
        group: the candidates are the ``cols`` of all ranks (all ranks' rows where ``cols`` is None), a process group or
            ``pycl.distributed.Ring``. ``offset`` counts within this rank; ids are compared as they are, and ``None``
            numbers the points of all ranks. Gradients are those of the sum over the ranks.
        backend: ``None`` for the automatic choice, or ``"cpu" | "triton" | "cuda" | "reference"``.

    Returns:
        ``PairStats`` of the rows, or with ``sides="both"`` those of the rows and of the columns. Differentiable once
        with respect to both ``z``, ``logit_scale`` and both biases.

    Raises:
        TypeError: embeddings that are not floating point, ids or views that are not integers, pair sets that are not
            ``Pairs``.
        ValueError: shapes that do not fit, tensors on different devices, an unknown ``sides`` or ``backend``.
        RuntimeError: a backend that is not built; a second derivative; another rank that failed.
    """
    if sides not in ("rows", "both"):
        raise ValueError(f"sides must be 'rows' or 'both', got {sides!r}")
    sets = {"denominator": denominator, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, group)
    name = backends.choose(backend, rows.z.device.type, args.rows.dtype)
    both = sides == "both" and args.cols is not None
    shards = sharded(group, "pair_stats", args, both)
    stats = cast("tuple[Tensor, ...]", StatsFunction.apply(*args, both, name, shards))
    of_rows = PairStats(*stats[:STATS])
    if sides == "rows":
        return of_rows
    return of_rows, PairStats(*stats[STATS:]) if both else of_rows


@together
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
    normalize: bool = False,
    group: Group | None = None,
    equal_weights: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Binary logistic losses summed over every anchor's pairs, [m] in float32 (float64 for float64 input).

    .. math:: \sum_{j \in \mathrm{negatives}(i)} \mathrm{softplus}(l_{ij})
              + \sum_{j \in \mathrm{positives}(i)} \mathrm{softplus}(-l_{ij})

    ``equal_weights`` says that a mean or a sum of the terms is what will be differentiated: on a CPU, in float32 and
    float64, their gradients then come from the sweep of the forward, three products in place of four. Other weights
    cost a sweep of their own.

    Logits, arguments and errors are those of ``pair_stats``.
    """
    sets = {"negatives": negatives, "positives": positives}
    args = _whole(problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize, group))
    name = backends.choose(backend, rows.z.device.type, args.rows.dtype)
    at_once = equal_weights and group is None and _computes_gradients_at_once(name, args.rows)
    return cast("Tensor", SumFunction.apply(*args, at_once, name, sharded(group, "pair_sum", args)))


def _computes_gradients_at_once(backend: str, rows: Tensor) -> bool:
    """Not for half types, whose gradients may not fit before they are scaled, nor in a graph, which cannot look."""
    if torch.compiler.is_compiling() or rows.dtype not in (torch.float32, torch.float64):
        return False
    return backends.why_not(backend, rows.device.type, rows.dtype, "pair_sum_gradients") is None


def pair_average(
    rows: Points,
    cols: Points | None,
    values: Tensor,
    logit_scale: float | Tensor = 1.0,
    *,
    pairs: Pairs = Pairs.ALL,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    normalize: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""The mean of the candidates' values under every anchor's softmax, [m, dv].

    .. math:: o_i = \sum_{j \in \mathrm{pairs}(i)} \frac{e^{l_{ij}}}{\sum_{k \in \mathrm{pairs}(i)} e^{l_{ik}}} v_j

    Attention whose weights are constants: the values get gradients, and what makes the logits may not ask for any.

    Args:
        values: [n, dv], floating point, on the device of the points.
        logit_scale: one number for all rows. The other arguments, and the errors from them, are those of
            ``pair_stats``.

    Returns:
        The means in float32 (float64 for float64 points); 0 for an anchor without pairs. Differentiable once with
        respect to ``values``.

    Raises:
        ValueError: values of another length or on another device, a scale for each row, points, a scale or biases
            that require a gradient where one is recorded.
    """
    args = _whole(problem_of(rows, cols, logit_scale, _one_set(pairs), row_bias, col_bias, offset, normalize))
    check_values(values, args)
    name = backends.choose(backend, rows.z.device.type, args.rows.dtype)
    with torch.no_grad():
        lse = torch.ops.pycl.pair_stats(*args, False, name)[0][0]
        shift = -lse.masked_fill(lse == -torch.inf, 0)
        args = args._replace(row_bias=shift if args.row_bias is None else args.row_bias + shift)
    return cast("Tensor", WeightedSumFunction.apply(*args, values, name))


def pair_logits(
    rows: Points,
    cols: Points | None = None,
    logit_scale: float | Tensor = 1.0,
    *,
    pairs: Pairs = Pairs.ALL,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    normalize: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""The matrix of logits itself, [m, n] in the dtype of the embeddings, ``-inf`` where a pair is not in ``pairs``.

    .. math:: l_{ij} = \mathrm{logit\_scale}_i \langle x_i, y_j \rangle + \mathrm{row\_bias}_i + \mathrm{col\_bias}_j

    Normalisation, scale, biases and mask are part of the product, which accumulates in at least float32.
    Differentiable once with respect to both ``z``, ``logit_scale`` and both biases; what comes back for a pair outside
    the set is ignored, whatever it is. Arguments and errors are those of ``pair_stats``.
    """
    args = problem_of(rows, cols, logit_scale, _one_set(pairs), row_bias, col_bias, offset, normalize)
    name = backends.choose(backend, rows.z.device.type, args.rows.dtype)
    return cast("Tensor", LogitsFunction.apply(*_whole(args), name))


@torch.no_grad()
def pair_top(
    rows: Points,
    cols: Points | None,
    k: int,
    logit_scale: float | Tensor = 1.0,
    *,
    pairs: Pairs = Pairs.ALL,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    offset: int | None = 0,
    normalize: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest logits of every anchor over a pair set, and whose they are, without the matrix.

    Among equal logits the candidate with the lowest index comes first; a NaN is larger than every number. A logit of
    ``-inf`` is no candidate. Not differentiable: gather the candidates and compute their logits again.

    Args:
        k: how many, ``1 <= k <= n``. The other arguments, and the errors from them, are those of ``pair_logits``.

    Returns:
        Values [m, k] in float32 (float64 for float64 input), descending, and int64 indices [m, k]. An anchor with
        fewer than k candidates has values of ``-inf`` and indices of -1 in the places left over.

    Raises:
        TypeError: a k that is no integer.
        ValueError: a k outside ``1 .. n``.
    """
    args = problem_of(rows, cols, logit_scale, _one_set(pairs), row_bias, col_bias, offset, normalize)
    check_k(k, args.n_cols)
    name = backends.choose(backend, rows.z.device.type, args.rows.dtype)
    return cast("tuple[Tensor, Tensor]", torch.ops.pycl.pair_top(*_whole(args), k, name))


def _one_set(pairs: Pairs) -> dict[str, Pairs]:
    return {"pairs": pairs, "positives": Pairs.NONE}


def _whole(args: Problem) -> Problem:
    """Columns of their own for a symmetric problem: what is not reduced over both roles needs both triangles."""
    if args.cols is not None:
        return args
    return args._replace(cols=args.rows, col_ids=args.row_ids, col_views=args.row_views, col_bias=args.row_bias)
