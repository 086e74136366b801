# SPDX-License-Identifier: Apache-2.0
"""The only gradient rules of the library: one ``autograd.Function`` for each differentiable operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from . import ops as ops  # registers torch.ops.pycl
from .problem import STATS, Gradients, Needs, Problem

_INPUTS = len(Problem._fields)
_LEAVES = [Problem._fields.index(name) for name in Gradients._fields]
_SCALE = Problem._fields.index("logit_scale")


def _save(ctx: Any, problem: Problem, *more: Tensor) -> None:
    tensors = [value if isinstance(value, Tensor) else None for value in problem]
    ctx.save_for_backward(*tensors, *more)
    ctx.settings = tuple(None if isinstance(value, Tensor) else value for value in problem)


def _restore(ctx: Any) -> tuple[Problem, tuple[Tensor, ...]]:
    saved = ctx.saved_tensors
    values = (setting if tensor is None else tensor for tensor, setting in zip(saved, ctx.settings, strict=False))
    return Problem(*values), saved[_INPUTS:]


def _needs(ctx: Any) -> Needs:
    wanted = ctx.needs_input_grad  # makes a tuple each time
    rows, cols, logit_scale, row_bias, col_bias = (wanted[i] for i in _LEAVES)
    return Needs(rows=rows or logit_scale, cols=cols, bias=row_bias or col_bias)


class _Final(torch.autograd.Function):
    """Hands a gradient on and ties it to what it came from, so that asking for its derivative raises."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "pycl's losses can be differentiated once: their backward recomputes the logits and has no derivative of "
            "its own. For second derivatives use a dense formula in plain torch."
        )


def _gradients(
    ctx: Any, leaves: Sequence[Tensor | None], found: Sequence[Tensor], rest: int
) -> tuple[Tensor | None, ...]:
    """Map an operator's gradients onto the inputs of the Function, ``None`` where none is needed."""
    gradients: list[Tensor | None] = [None] * (_INPUTS + rest)
    wanted = ctx.needs_input_grad
    create_graph = torch.is_grad_enabled()
    for i, leaf, gradient in zip(_LEAVES, leaves, found, strict=True):
        if not wanted[i]:
            continue
        if i == _SCALE and leaf is not None and leaf.dim() == 0:
            gradient = gradient.sum()
        gradients[i] = _Final.apply(gradient, *leaves) if create_graph else gradient
    return tuple(gradients)


class StatsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *arguments, both_sides, backend, sharded = args
        ctx.backend, ctx.operators = backend, sharded or torch.ops.pycl
        row_stats, col_stats = ctx.operators.pair_stats(*arguments, both_sides, backend)
        _save(ctx, Problem(*arguments), row_stats, col_stats)
        ctx.set_materialize_grads(False)
        sides = (row_stats, col_stats) if both_sides else (row_stats,)
        stats = [row for side in sides for row in side.unbind()[:STATS]]
        ctx.mark_non_differentiable(*stats[STATS - 1 :: STATS])  # the counts
        return tuple(stats)

    @staticmethod
    def backward(ctx: Any, *d_stats: Tensor | None) -> tuple[Tensor | None, ...]:
        problem, stats = _restore(ctx)
        d_sides = [None if d is None else d.contiguous() for d in d_stats]
        d_rows, d_cols = d_sides[: STATS - 1], d_sides[STATS : 2 * STATS - 1] or [None] * (STATS - 1)
        found = ctx.operators.pair_stats_backward(*problem, *stats, d_rows, d_cols, _needs(ctx), ctx.backend)
        return _gradients(ctx, problem.leaves, found, rest=3)


class SumFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *arguments, backend, sharded = args
        ctx.backend, ctx.operators = backend, sharded or torch.ops.pycl
        sums = ctx.operators.pair_sum(*arguments, backend)
        _save(ctx, Problem(*arguments), sums)
        return cast("Tensor", sums)

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor) -> tuple[Tensor | None, ...]:
        problem, (sums,) = _restore(ctx)
        found = ctx.operators.pair_sum_backward(*problem, sums, d_sum.contiguous(), _needs(ctx), ctx.backend)
        return _gradients(ctx, problem.leaves, found, rest=2)


class TotalFunction(torch.autograd.Function):
    """A scalar on a CPU whose gradients come with it; the backward scales them where the slope is not 1."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *arguments, operator, weights, backend = args
        compute = getattr(torch.ops.pycl, operator)
        total, *gradients = compute(*arguments, *weights, _needs(ctx), backend)
        ctx.save_for_backward(*gradients, *Problem(*arguments).leaves)
        return cast("Tensor", total)

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        of_total, leaves = saved[: len(_LEAVES)], saved[len(_LEAVES) :]
        found = of_total
        if float(d_total) != 1:  # mostly a loss is the end of its graph
            found = [gradient * d_total if len(gradient) else gradient for gradient in of_total]
        return _gradients(ctx, leaves, found, rest=3)


class LogitsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        _save(ctx, Problem(*args[:_INPUTS]))
        ctx.backend = args[-1]
        return cast("Tensor", torch.ops.pycl.pair_logits(*args))

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        problem, _ = _restore(ctx)
        found = torch.ops.pycl.pair_logits_backward(*problem, d_logits, _needs(ctx), ctx.backend)
        return _gradients(ctx, problem.leaves, found, rest=1)


class WeightedSumFunction(torch.autograd.Function):
    """Linear in the values; the weights are constants."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *_, values, backend = args
        _save(ctx, Problem(*args[:_INPUTS]), values)
        ctx.backend = backend
        return cast("Tensor", torch.ops.pycl.pair_weighted_sum(*args))

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        problem, (values,) = _restore(ctx)
        found = torch.ops.pycl.pair_weighted_sum(*problem.exchanged(), d_out.contiguous(), ctx.backend)
        gradient = found.to(values.dtype)
        if torch.is_grad_enabled():  # create_graph=True
            gradient = _Final.apply(gradient, d_out)
        return (*([None] * _INPUTS), gradient, None)
