# SPDX-License-Identifier: Apache-2.0
"""The engine's operators on points that are spread over ranks: each rank computes its rows with all columns.

``Sharded`` has the signatures of ``torch.ops.pycl``. A rank's own columns are computed first, while others are on
their way; statistics and gradients of columns go home to the rank that owns them. Of a symmetric matrix every pair of
points is computed on one rank only, so W ranks divide exactly the work of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from pycl.core.modifiers import forms, without_handles
from pycl.core.problem import (
    LEAVES,
    N_GRADED,
    N_MODIFIER_LEAVES,
    Gradients,
    Needs,
    Problem,
    StatsRow,
    accumulation_dtype,
    no_residuals,
    split_by_modifier,
    stats_blocks,
)
from pycl.core.tracing import eager
from pycl.distributed.exchange import AllGatherExchange, ColumnExchange, RemoteBlock, RingExchange, RowRange
from pycl.distributed.ranks import Agreement, Group, agree

_WIDTH = len(Problem._fields)


def sharded(
    group: Group | None, operator: str, problem: Problem, both_sides: bool = False, **facts: str | int
) -> tuple[Problem, Sharded | None]:
    """The operators for ranks that agree on the problem and on more facts, or None without a group.

    They take the problem that comes with them: its positions are those among the points of all ranks.

    Raises:
        ValueError: on every rank, where one brings another dtype, width, pair set or kind of input than the others.
        RuntimeError: where another rank failed before it came here.
    """
    if group is None:
        return problem, None
    p = problem
    one_scale = p.logit_scale.dim() == 0 and p.logit_scale.device.type == "cpu"  # others would have to be waited for
    wants_gradient = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in p.leaves()]
    agreement = agree(
        group,
        p.rows.device,
        [len(p.rows), p.n_cols()],
        operator=operator,
        dtype=str(p.rows.dtype),
        d=p.rows.shape[1],
        symmetric=p.cols is None,
        both_sides=both_sides,
        pairs=int(p.pairs),
        positives=int(p.positives),
        normalize=p.normalize,
        logit_scale=float(f"{p.logit_scale.item():.5g}") if one_scale else None,
        scales=p.logit_scale.dim(),
        row_bias=p.row_bias is not None,
        col_bias=p.col_bias is not None,
        gradients=",".join(compress(LEAVES, wants_gradient)),
        modifiers=str(without_handles(p.modifiers)),
        **facts,
    )
    return (problem, None) if agreement is None else (_numbered(problem, agreement), Sharded(agreement))


def _numbered(problem: Problem, agreement: Agreement) -> Problem:
    """The problem with its positions counted on from those of the ranks before."""
    p = problem
    for form in forms(p.modifiers):
        if form.kind == "score_mod":
            assert p.row_codes is not None
            assert p.col_codes is not None
            row_codes, col_codes = p.row_codes.clone(), p.col_codes.clone()
            for codes, start in zip((row_codes, col_codes), agreement.starts[agreement.ranks.rank], strict=True):
                codes[:, form.codes] += start
            p = p._replace(row_codes=row_codes, col_codes=col_codes)
    return p


class Sharded:
    """Stands for ``torch.ops.pycl`` once the ranks have agreed on the problem.

    torch.compile traces nothing of it, not even in the backward of a compiled step: what it makes of the views of
    packed tensors is wrong once a batch has another size (torch 2.13).
    """

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement  # on rows and columns of each rank

    @eager
    def pair_stats(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        problem, (slopes, both_sides, _, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
        symmetric = problem.cols is None
        both_sides = both_sides or symmetric  # a remote block serves the points of both ranks
        exchange = self._exchange(symmetric)
        remote_blocks = exchange.fetch(_columns(problem))
        row_stats, col_stats, residuals = torch.ops.pycl.pair_stats(*args)
        mine = row_stats if symmetric else col_stats
        returns = exchange.returns([mine.T], lambda at, found: _merge(mine, at, found[0].T))
        for remote in remote_blocks:
            part = *_part(problem, remote), slopes, both_sides, False, backend
            of_rows, of_cols, _ = torch.ops.pycl.pair_stats(*part)
            _merge(row_stats, remote.rows, of_rows)
            if both_sides:
                returns.send(remote, [of_cols.T])
        if both_sides:
            returns.wait()
        return row_stats, col_stats, residuals

    @eager
    def pair_stats_backward(self, *args: Any) -> Gradients:
        problem, more = Problem(*args[:_WIDTH]), args[_WIDTH:]
        slopes, row_stats, col_stats, _, *d_stats, needs, backend = more
        d_rows, d_cols = d_stats[:N_GRADED], d_stats[N_GRADED:]
        symmetric = problem.cols is None
        stats, d_stats = (row_stats, d_rows) if symmetric else (col_stats, d_cols)
        lses = stats_blocks(stats)[:, 0] if slopes else stats[0]
        given = (
            torch.zeros_like(like) if d is None else d for d, like in zip(d_stats, (lses, lses, stats[0]), strict=True)
        )
        travel = [stats.T, *(d.movedim(-1, 0) for d in given)] if stats.shape[1] else []

        def backward(remote: RemoteBlock, needs: Needs) -> Gradients:
            at = remote.rows
            of_cols, *arrived = remote.columns[-len(travel) :] if travel else [col_stats.T]
            d_of_cols = [d.movedim(0, -1).contiguous() for d in arrived] or d_cols
            stats = row_stats[:, at.start : at.stop].contiguous(), of_cols.T.contiguous()
            d_of_rows = [None if d is None else d[..., at.start : at.stop].contiguous() for d in d_rows]
            part = _part(problem, remote)
            residuals = no_residuals(part)
            given = slopes, *stats, residuals, *d_of_rows, *d_of_cols, needs, backend
            return Gradients(*torch.ops.pycl.pair_stats_backward(*part, *given))

        exchange = self._exchange(symmetric)
        remote_blocks = exchange.fetch([*_columns(problem), *travel])
        own = Gradients(*torch.ops.pycl.pair_stats_backward(*args))
        return _add_gradients(problem, Needs(*needs), own, exchange, remote_blocks, backward)

    @eager
    def pair_sum(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        problem, (*terms, counted, _, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
        remote_blocks = self._exchange(symmetric=False).fetch(_columns(problem))
        found, counts, residuals = torch.ops.pycl.pair_sum(*args)
        for remote in remote_blocks:
            part = torch.ops.pycl.pair_sum(*_part(problem, remote), *terms, counted, False, backend)
            found += part[0]
            counts += part[1]
        return found, counts, residuals

    @eager
    def pair_sum_backward(self, *args: Any) -> Gradients:
        problem, (*terms, _, d_sum, needs, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]

        def backward(remote: RemoteBlock, needs: Needs) -> Gradients:
            part = _part(problem, remote)
            residuals = no_residuals(part)
            return Gradients(*torch.ops.pycl.pair_sum_backward(*part, *terms, residuals, d_sum, needs, backend))

        exchange = self._exchange(symmetric=False)
        remote_blocks = exchange.fetch(_columns(problem))
        own = Gradients(*torch.ops.pycl.pair_sum_backward(*args))
        return _add_gradients(problem, Needs(*needs), own, exchange, remote_blocks, backward)

    @eager
    def pair_average(self, *args: Any) -> tuple[Tensor, Tensor]:
        problem, (values, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
        travel = [] if values is None else [values]
        remote_blocks = self._exchange(symmetric=False).fetch([*_columns(problem), *travel])
        means, lse = torch.ops.pycl.pair_average(*args)
        for remote in remote_blocks:
            of_block = remote.columns[-1] if travel else None
            part = torch.ops.pycl.pair_average(*_part(problem, remote), of_block, backend)
            share = torch.sigmoid(part[1] - lse).masked_fill(part[1] == -torch.inf, 0)
            means += share[:, None] * (part[0] - means)
            lse = torch.logaddexp(lse, part[1])
        return means, lse

    @eager
    def pair_average_backward(self, *args: Any) -> tuple[Tensor, ...]:
        problem, (values, d_out, along, of_values, needs, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
        arrived: list[Tensor] = []  # the values' gradients of a block, which go home with its columns'

        def backward(remote: RemoteBlock, needs: Needs) -> Gradients:
            more = remote.columns[-1], d_out, along, of_values, needs, backend
            arrived[:], found = [], torch.ops.pycl.pair_average_backward(*_part(problem, remote), *more)
            arrived.append(found[0])
            return Gradients(*found[1:])

        exchange = self._exchange(symmetric=False)
        remote_blocks = exchange.fetch([*_columns(problem), values])
        d_values, *own = torch.ops.pycl.pair_average_backward(*args)
        gradients = _add_gradients(
            problem, Needs(*needs), Gradients(*own), exchange, remote_blocks, backward, (d_values, arrived)
        )
        return d_values, *gradients

    @eager
    def pair_extremes(self, *args: Any) -> tuple[Tensor, ...]:
        problem, (both_sides, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
        exchange = self._exchange(symmetric=False)
        remote_blocks = exchange.fetch(_columns(problem))
        values, index, *of_cols = torch.ops.pycl.pair_extremes(*args)
        of_rows = values, _moved_on(index, self._first_column())
        of_cols = [x.T for x in (of_cols[0], _moved_on(of_cols[1], self._first_row()))]

        def deliver(at: RowRange, arrived: list[Tensor]) -> None:
            _merge_extremes([at.of(x).T for x in of_cols], [x.T for x in arrived])

        returns = exchange.returns(of_cols, deliver)
        for remote in _by_owner(remote_blocks):
            part = torch.ops.pycl.pair_extremes(*_part(problem, remote), both_sides, backend)
            _merge_extremes(of_rows, (part[0], _moved_on(part[1], self._first_column(remote))))
            if both_sides:
                returns.send(remote, [part[2].T, _moved_on(part[3], self._first_row()).T])
        if both_sides:
            returns.wait()
        return *of_rows, *(x.T for x in of_cols)

    @eager
    def pair_extremes_backward(self, *args: Any) -> Gradients:
        problem, (row_index, col_index, *d_found, needs, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
        d_of_rows, d_of_cols = d_found[:2], d_found[2:]
        travel: list[Tensor] = []
        if col_index.shape[1]:
            zero = problem.logit_scale.new_zeros(problem.n_cols())
            travel = [col_index.T, *(zero if d is None else d for d in d_of_cols)]

        def of_block(block: Problem, first: int, chosen: Sequence[Any], needs: Needs) -> Gradients:
            rows = _within(row_index, first, block.n_cols())
            cols = _within(chosen[0].T, self._first_row(), len(block.rows))
            given = rows, cols, *d_of_rows, *chosen[1:], needs, backend
            return Gradients(*torch.ops.pycl.pair_extremes_backward(*block, *given))

        own = col_index.T, *d_of_cols

        def backward(remote: RemoteBlock, needs: Needs) -> Gradients:
            arrived = remote.columns[-len(travel) :] if travel else own
            return of_block(_part(problem, remote), self._first_column(remote), arrived, needs)

        exchange = self._exchange(symmetric=False)
        remote_blocks = exchange.fetch([*_columns(problem), *travel])
        found = of_block(problem, self._first_column(), own, needs)
        return _add_gradients(problem, Needs(*needs), found, exchange, _by_owner(remote_blocks), backward)

    def _first_row(self) -> int:
        """The position of this rank's first row among those of all ranks."""
        return self.agreement.starts[self.agreement.ranks.rank][0]

    def _first_column(self, remote: RemoteBlock | None = None) -> int:
        """The position of the first column of a remote block of one rank, or of this rank, among those of all ranks."""
        if remote is None:
            return self.agreement.starts[self.agreement.ranks.rank][1]
        (block,) = remote.blocks
        return self.agreement.starts[block.owner][1] + block.cols.start

    def _exchange(self, symmetric: bool) -> AllGatherExchange | RingExchange:
        ranks, sizes = self.agreement
        return (RingExchange if ranks.ring else AllGatherExchange)(ranks, sizes, symmetric)


def _columns(problem: Problem) -> list[Tensor]:
    """What other ranks need of this rank's columns; those of a symmetric problem are its rows."""
    return [x for x in _of_columns(problem) if x is not None]


def _of_columns(problem: Problem) -> tuple[Tensor | None, ...]:
    p = problem
    if p.cols is None:
        return p.rows, p.row_ids, p.row_views, p.row_bias, p.row_codes, p.row_values
    return p.cols, p.col_ids, p.col_views, p.col_bias, p.col_codes, p.col_values


def _part(problem: Problem, remote: RemoteBlock) -> Problem:
    """Some rows with other ranks' columns; no point meets itself there."""
    p, at = problem, remote.rows
    assert p.row_ids is not None  # points of a group have labels
    assert p.row_views is not None
    arrived = iter(remote.columns)
    cols, col_ids, col_views, col_bias, col_codes, col_values = (
        None if x is None else next(arrived) for x in _of_columns(p)
    )
    return p._replace(
        rows=at.of(p.rows),
        cols=cols,
        row_ids=at.of(p.row_ids),
        row_views=at.of(p.row_views),
        col_ids=col_ids,
        col_views=col_views,
        logit_scale=p.logit_scale if p.logit_scale.dim() == 0 else at.of(p.logit_scale),
        row_bias=None if p.row_bias is None else at.of(p.row_bias),
        col_bias=col_bias,
        offset=None,
        row_codes=None if p.row_codes is None else at.of(p.row_codes),
        col_codes=col_codes,
        row_values=None if p.row_values is None else at.of(p.row_values),
        col_values=col_values,
    )


def _by_owner(remote_blocks: Iterator[RemoteBlock]) -> Iterator[RemoteBlock]:
    """One rank's columns at a time, where positions matter: gathered ones begin with the rank after this one."""
    for remote in remote_blocks:
        sizes = [block.cols.size for block in remote.blocks]
        for block, *columns in zip(remote.blocks, *(x.split(sizes) for x in remote.columns), strict=True):
            yield RemoteBlock(remote.rows, [block], columns)


def _moved_on(index: Tensor, first: int) -> Tensor:
    """Positions in a block that begins at ``first`` as those among the points of all ranks; -1 stays."""
    return index + (index >= 0) * first


def _within(index: Tensor, first: int, n: int) -> Tensor:
    """Positions among the points of all ranks as those in a block of n that begins at ``first``; -1 for all others."""
    return torch.where((index >= first) & (index < first + n), index - first, -1).contiguous()


def _merge_extremes(found: Sequence[Tensor], part: Sequence[Tensor]) -> None:
    """Merge the values and positions of a block, [2, n] each, into those that were found before.

    Blocks come in any order, and the choice is that among all candidates at once: a NaN, and of equals the first.
    """
    for value, index, other, at, beyond in zip(*found, *part, (torch.gt, torch.lt), strict=True):
        equal = (other == value) | (other.isnan() & value.isnan())
        better = beyond(other, value) | (other.isnan() & ~value.isnan()) | (equal & (at < index)) | (index < 0)
        better &= at >= 0
        value.copy_(torch.where(better, other, value))
        index.copy_(torch.where(better, at, index))


_LSES = slice(StatsRow.LSE, StatsRow.POS_LSE + 1)
_SUMS = slice(StatsRow.POS_SUM, StatsRow.POS_COUNT + 1)
_LSES_LOG2 = slice(StatsRow.LSE_LOG2, StatsRow.POS_LSE_LOG2 + 1)


def _merge(stats: Tensor, at: RowRange, part: Tensor) -> None:
    """Merge the statistics ``part`` of the points ``at``, over further partners, into theirs."""
    mine, part = stats_blocks(stats[:, at.start : at.stop]), stats_blocks(part)
    for rows, join in ((_LSES, torch.logaddexp), (_SUMS, torch.add), (_LSES_LOG2, torch.logaddexp2)):
        mine[:, rows] = join(mine[:, rows], part[:, rows])


def _add_gradients(
    problem: Problem,
    needs: Needs,
    own: Gradients,
    exchange: ColumnExchange,
    remote_blocks: Iterator[RemoteBlock],
    backward: Callable[[RemoteBlock, Needs], Gradients],
    values: tuple[Tensor, list[Tensor]] | None = None,
) -> Gradients:
    """A rank's gradients: the sum over its own block, remote blocks, and what others computed for its columns.

    ``values``: the gradient of this rank's values, which is added to, and the place where ``backward`` leaves that of a
    remote block's.
    """
    symmetric = problem.cols is None
    dtype = accumulation_dtype(problem.rows.dtype)
    found = Gradients(*(gradient.to(dtype) for gradient in own))
    d_row_values, d_col_values, d_shared = _of_modifiers(found, problem)
    if symmetric:
        mine, like = (found.rows, found.row_bias, d_row_values), (own.rows, own.row_bias, d_row_values)
    else:
        mine, like = (found.cols, found.col_bias, d_col_values), (own.cols, own.col_bias, d_col_values)
    d_values, of_values = ((), []) if values is None else ((values[0],), values[1])
    mine, like = (*mine, *d_values), (*like, *d_values)
    needed = Needs(needs.rows, needs.rows if symmetric else needs.cols, needs.bias, needs.modifiers)

    def add(at: RowRange, arrived: list[Tensor]) -> None:
        for gradient, part in zip([x for x in mine if len(x)], arrived, strict=True):
            gradient[at.start : at.stop] += part

    sent = [x for x in like if len(x)]
    returns = exchange.returns(sent, add) if sent else None
    of_rows = found.rows, found.logit_scale, found.row_bias, d_row_values
    for remote in remote_blocks:
        part = backward(remote, needed)
        row_values, col_values, shared = _of_modifiers(part, _part(problem, remote))
        for gradient, more in zip(of_rows, (part.rows, part.logit_scale, part.row_bias, row_values), strict=True):
            if len(gradient):
                remote.rows.of(gradient).add_(more)
        d_shared.add_(shared)
        if returns is not None:
            returns.send(remote, [x for x in (part.cols, part.col_bias, col_values, *of_values) if len(x)])
    if returns is not None:
        returns.wait()
    return Gradients(*(gradient.to(x.dtype) for gradient, x in zip(found, own, strict=True)))


def _of_modifiers(gradients: Gradients, problem: Problem) -> list[Tensor]:
    """Views of the gradients of a problem's modifiers, empty where there are none."""
    if len(gradients.modifiers):
        found = split_by_modifier(gradients.modifiers, problem.leaves())
        return [x if x.numel() else x.view(-1)[:0] for x in found]
    return [gradients.modifiers] * N_MODIFIER_LEAVES
