# SPDX-License-Identifier: Apache-2.0
"""The engine's operators on points that are spread over ranks: each rank computes its rows with all columns.

``Sharded`` has the signatures of ``torch.ops.pycl``. A rank's own columns are computed first, while others are on
their way; statistics and gradients of columns go home to the rank that owns them. Of a symmetric matrix every pair of
points is computed on one rank only, so W ranks divide exactly the work of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pycl.core.problem import STATS, Gradients, Needs, Problem, accumulation_dtype, nothing_kept
from pycl.core.tracing import eager
from pycl.distributed.exchange import Gathered, Passed, Span, Stop, Transport
from pycl.distributed.ranks import Group, Ranks, ranks_of

_WIDTH = len(Problem._fields)


def sharded(group: Group | None, operator: str, problem: Problem, both_sides: bool = False) -> Sharded | None:
    """The operators for ranks that agree on the problem, or None without a group.

    Raises:
        ValueError: on every rank, where one brings another dtype, width, pair set or kind of input than the others.
        RuntimeError: where another rank failed before it came here.
    """
    if (ranks := ranks_of(group)) is None:
        return None
    p = problem
    one_scale = p.logit_scale.dim() == 0 and p.logit_scale.device.type == "cpu"
    sizes = ranks.meet(
        p.rows.device,
        [len(p.rows), p.n_cols()],
        operator=operator,
        dtype=str(p.rows.dtype),
        d=p.rows.shape[1],
        symmetric=p.cols is None,
        both_sides=both_sides,
        denominator=int(p.denominator),
        positives=int(p.positives),
        normalize=p.normalize,
        logit_scale=float(f"{p.logit_scale.item():.5g}") if one_scale else None,
        scales=p.logit_scale.dim(),
        row_bias=p.row_bias is not None,
        col_bias=p.col_bias is not None,
        gradients=",".join(name for name in _LEAVES if _needs_grad(getattr(p, name))),
    )
    return Sharded(ranks, sizes)


_LEAVES = ("rows", "cols", "logit_scale", "row_bias", "col_bias")


def _needs_grad(x: Tensor | None) -> bool:
    return torch.is_grad_enabled() and x is not None and x.requires_grad


class Sharded:
    """Stands for ``torch.ops.pycl`` once the ranks have agreed on the problem.

    Nothing of it is traced, not even in a backward that a compiled step calls: what torch.compile makes of a parcel's
    views is wrong once a batch has another size (torch 2.13).
    """

    def __init__(self, ranks: Ranks, sizes: Sequence[Sequence[int]]) -> None:
        self.ranks, self.sizes = ranks, sizes  # rows and columns of each rank

    @eager
    def pair_stats(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        problem, (both_sides, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
        symmetric = problem.cols is None
        columns_too = both_sides or symmetric
        transport = self._transport(symmetric)
        stops = transport.fetch(_columns(problem))
        row_stats, col_stats, kept = torch.ops.pycl.pair_stats(*args)
        mine = row_stats if symmetric else col_stats
        returns = transport.returns([mine.T], lambda span, found: _merge(mine, span, found[0].T))
        for stop in stops:
            of_rows, of_cols, _ = torch.ops.pycl.pair_stats(*_part(problem, stop), columns_too, backend)
            _merge(row_stats, stop.rows, of_rows)
            if columns_too:
                returns.give(stop, [of_cols.T])
        if columns_too:
            returns.finish()
        return row_stats, col_stats, kept

    @eager
    def pair_stats_backward(self, *args: Any) -> Gradients:
        problem, more = Problem(*args[:_WIDTH]), args[_WIDTH:]
        row_stats, col_stats, _, *d_stats, needs, backend = more
        d_rows, d_cols = d_stats[: STATS - 1], d_stats[STATS - 1 :]
        symmetric = problem.cols is None
        stats, d_stats = (row_stats, d_rows) if symmetric else (col_stats, d_cols)
        given = (torch.zeros_like(stats[0]) if d is None else d for d in d_stats)
        slopes = [stats.T, *given] if stats.shape[1] else []

        def backward(stop: Stop, needs: Needs) -> Gradients:
            at, (of_cols, *d_of_cols) = stop.rows, stop.columns[-len(slopes) :] if slopes else [col_stats.T, *d_cols]
            stats = row_stats[:, at.start : at.stop].contiguous(), of_cols.T.contiguous()
            d_of_rows = [None if d is None else at.of(d) for d in d_rows]
            part = _part(problem, stop)
            kept = nothing_kept(part)
            return Gradients(
                *torch.ops.pycl.pair_stats_backward(*part, *stats, kept, *d_of_rows, *d_of_cols, needs, backend)
            )

        transport = self._transport(symmetric)
        stops = transport.fetch([*_columns(problem), *slopes])
        own = Gradients(*torch.ops.pycl.pair_stats_backward(*args))
        return _add_gradients(problem, Needs(*needs), own, transport, stops, backward)

    @eager
    def pair_sum(self, *args: Any) -> tuple[Tensor, Tensor]:
        problem, backend = Problem(*args[:_WIDTH]), args[_WIDTH]
        stops = self._transport(symmetric=False).fetch(_columns(problem))
        found, kept = torch.ops.pycl.pair_sum(*args)
        for stop in stops:
            found += torch.ops.pycl.pair_sum(*_part(problem, stop), backend)[0]
        return found, kept

    @eager
    def pair_sum_backward(self, *args: Any) -> Gradients:
        problem, (_, d_sum, needs, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]

        def backward(stop: Stop, needs: Needs) -> Gradients:
            part = _part(problem, stop)
            kept = nothing_kept(part)
            return Gradients(*torch.ops.pycl.pair_sum_backward(*part, kept, d_sum, needs, backend))

        transport = self._transport(symmetric=False)
        stops = transport.fetch(_columns(problem))
        own = Gradients(*torch.ops.pycl.pair_sum_backward(*args))
        return _add_gradients(problem, Needs(*needs), own, transport, stops, backward)

    def _transport(self, symmetric: bool) -> Gathered | Passed:
        return (Passed if self.ranks.ring else Gathered)(self.ranks, self.sizes, symmetric)


def _columns(problem: Problem) -> list[Tensor]:
    """What other ranks need of this rank's columns; those of a symmetric problem are its rows."""
    p = problem
    columns = (
        (p.rows, p.row_ids, p.row_views, p.row_bias) if p.cols is None else (p.cols, p.col_ids, p.col_views, p.col_bias)
    )
    return [x for x in columns if x is not None]


def _part(problem: Problem, stop: Stop) -> Problem:
    """Some rows with other ranks' columns; no point meets itself there."""
    p, at = problem, stop.rows
    assert p.row_ids is not None  # points of a group have labels
    assert p.row_views is not None
    cols, col_ids, col_views, *more = stop.columns
    biased = (p.row_bias if p.cols is None else p.col_bias) is not None
    return p._replace(
        rows=at.of(p.rows),
        cols=cols,
        row_ids=at.of(p.row_ids),
        row_views=at.of(p.row_views),
        col_ids=col_ids,
        col_views=col_views,
        logit_scale=p.logit_scale if p.logit_scale.dim() == 0 else at.of(p.logit_scale),
        row_bias=None if p.row_bias is None else at.of(p.row_bias),
        col_bias=more[0] if biased else None,
        offset=None,
    )


def _merge(stats: Tensor, at: Span, part: Tensor) -> None:
    """Statistics of points over two sets of partners; the two last rows are log-sum-exps in units of log 2."""
    mine = stats[:, at.start : at.stop]
    mine[:2] = torch.logaddexp(mine[:2], part[:2])
    mine[2:STATS] += part[2:STATS]
    mine[STATS:] = torch.logaddexp2(mine[STATS:], part[STATS:])


def _add_gradients(
    problem: Problem,
    needs: Needs,
    own: Gradients,
    transport: Transport,
    stops: Iterator[Stop],
    backward: Callable[[Stop, Needs], Gradients],
) -> Gradients:
    """The gradients of a rank's own block, with those of all stops and what other ranks computed for its columns."""
    symmetric = problem.cols is None
    dtype = accumulation_dtype(problem.rows.dtype)
    found = Gradients(*(gradient.to(dtype) for gradient in own))
    mine = (found.rows, found.row_bias) if symmetric else (found.cols, found.col_bias)
    needed = Needs(needs.rows, needs.rows if symmetric else needs.cols, needs.bias)

    def add(span: Span, arrived: list[Tensor]) -> None:
        for gradient, part in zip([x for x in mine if len(x)], arrived, strict=True):
            gradient[span.start : span.stop] += part

    like = [x for x in ((own.rows, own.row_bias) if symmetric else (own.cols, own.col_bias)) if len(x)]
    returns = transport.returns(like, add) if like else None
    for stop in stops:
        of_rows, of_cols, of_scale, of_row_bias, of_col_bias = backward(stop, needed)
        for gradient, part in ((found.rows, of_rows), (found.logit_scale, of_scale), (found.row_bias, of_row_bias)):
            if len(gradient):
                stop.rows.of(gradient).add_(part)
        if returns is not None:
            returns.give(stop, [x for x in (of_cols, of_col_bias) if len(x)])
    if returns is not None:
        returns.finish()
    return Gradients(*(gradient.to(x.dtype) for gradient, x in zip(found, own, strict=True)))
