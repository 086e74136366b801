# SPDX-License-Identifier: Apache-2.0
"""The engine: reductions over the logits of all pairs of points, which are never stored.

``pair_stats`` and ``pair_sum`` are the only two things a loss needs, and the two ``autograd.Function`` below are the
only gradient rules of the library.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor

from . import backends
from .ops import STATS, Needs, Problem
from .pairs import Pairs, Points
from .validation import problem_of

__all__ = ["PairStats", "Pairs", "Points", "pair_stats", "pair_sum"]


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
    backend: str | None = None,
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
        backend: ``None`` for the automatic choice, or ``"cpu" | "triton" | "cuda" | "reference"``.

    Returns:
        ``PairStats`` of the rows, or with ``sides="both"`` those of the rows and of the columns. Differentiable once
        with respect to both ``z``, ``logit_scale`` and both biases.

    Raises:
        TypeError: embeddings that are not floating point, ids or views that are not integers, pair sets that are not
            ``Pairs``.
        ValueError: shapes that do not fit, tensors on different devices, an unknown ``sides`` or ``backend``.
        RuntimeError: a backend that is not built; a second derivative.
    """
    if sides not in ("rows", "both"):
        raise ValueError(f"sides must be 'rows' or 'both', got {sides!r}")
    sets = {"denominator": denominator, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize)
    name = backends.choose(backend, rows.z.device.type)
    both = sides == "both" and args.cols is not None
    stats = cast("tuple[Tensor, ...]", _PairStats.apply(*args, both, name))
    of_rows = PairStats(*stats[:STATS])
    if sides == "rows":
        return of_rows
    return of_rows, PairStats(*stats[STATS:]) if both else of_rows


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
    backend: str | None = None,
) -> Tensor:
    r"""Binary logistic losses summed over every anchor's pairs, [m] in float32 (float64 for float64 input).

    .. math:: \sum_{j \in \mathrm{negatives}(i)} \mathrm{softplus}(l_{ij})
              + \sum_{j \in \mathrm{positives}(i)} \mathrm{softplus}(-l_{ij})

    Logits, arguments and errors are those of ``pair_stats``.
    """
    sets = {"negatives": negatives, "positives": positives}
    args = problem_of(rows, cols, logit_scale, sets, row_bias, col_bias, offset, normalize)
    if args.cols is None:  # one row sum per anchor needs the whole matrix, from both triangles
        args = args._replace(cols=args.rows, col_ids=args.row_ids, col_views=args.row_views, col_bias=args.row_bias)
    name = backends.choose(backend, rows.z.device.type)
    return cast("Tensor", _PairSum.apply(*args, name))


_INPUTS = len(Problem._fields)


def _save(ctx: Any, problem: Problem, *more: Tensor) -> None:
    tensors = [value if isinstance(value, Tensor) else None for value in problem]
    ctx.save_for_backward(*tensors, *more)
    ctx.settings = tuple(None if isinstance(value, Tensor) else value for value in problem)


def _restore(ctx: Any) -> tuple[Problem, tuple[Tensor, ...]]:
    saved = ctx.saved_tensors
    values = (setting if tensor is None else tensor for tensor, setting in zip(saved, ctx.settings, strict=False))
    return Problem(*values), saved[_INPUTS:]


def _needs(ctx: Any) -> Needs:
    needed = dict(zip(Problem._fields, ctx.needs_input_grad, strict=False))
    return Needs(
        rows=needed["rows"] or needed["logit_scale"], cols=needed["cols"], bias=needed["row_bias"] or needed["col_bias"]
    )


class _Final(torch.autograd.Function):
    """Hands a gradient on and ties it to what it came from, so that asking for its derivative raises."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "pycl's losses can be differentiated once: their backward recomputes the logits and has no derivative of "
            "its own. For second derivatives use a dense formula in plain torch."
        )


def _gradients(ctx: Any, problem: Problem, found: tuple[Tensor, ...], rest: int) -> tuple[Tensor | None, ...]:
    """Map an operator's gradients onto the inputs of the Function, ``None`` where none is needed."""
    by_name = dict(zip(("rows", "cols", "logit_scale", "row_bias", "col_bias"), found, strict=True))
    gradients: list[Tensor | None] = []
    for name, needed in zip(Problem._fields, ctx.needs_input_grad, strict=False):
        gradient = by_name[name] if needed else None
        if gradient is not None and name == "logit_scale" and problem.logit_scale.dim() == 0:
            gradient = gradient.sum()
        if gradient is not None and torch.is_grad_enabled():  # create_graph=True
            gradient = _Final.apply(gradient, problem.rows)
        gradients.append(gradient)
    return (*gradients, *([None] * rest))


class _PairStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *_, both_sides, backend = args
        row_stats, col_stats = torch.ops.pycl.pair_stats(*args)
        _save(ctx, Problem(*args[:_INPUTS]), row_stats, col_stats)
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        sides = (row_stats, col_stats) if both_sides else (row_stats,)
        stats = [row for side in sides for row in side[:STATS].unbind()]
        ctx.mark_non_differentiable(*stats[STATS - 1 :: STATS])  # the counts
        return tuple(stats)

    @staticmethod
    def backward(ctx: Any, *d_stats: Tensor | None) -> tuple[Tensor | None, ...]:
        problem, stats = _restore(ctx)
        d_sides = [None if d is None else d.contiguous() for d in d_stats]
        d_rows, d_cols = d_sides[: STATS - 1], d_sides[STATS : 2 * STATS - 1] or [None] * (STATS - 1)
        found = torch.ops.pycl.pair_stats_backward(*problem, *stats, d_rows, d_cols, _needs(ctx), ctx.backend)
        return _gradients(ctx, problem, found, rest=2)


class _PairSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        _save(ctx, Problem(*args[:_INPUTS]))
        ctx.backend = args[-1]
        return cast("Tensor", torch.ops.pycl.pair_sum(*args))

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor) -> tuple[Tensor | None, ...]:
        problem, _ = _restore(ctx)
        found = torch.ops.pycl.pair_sum_backward(*problem, d_sum.contiguous(), _needs(ctx), ctx.backend)
        return _gradients(ctx, problem, found, rest=1)
