# SPDX-License-Identifier: Apache-2.0
"""The only gradient rules of the library: one ``autograd.Function`` for each differentiable operator.

All are called through ``apply``. The transforms of torch.func ask that all that a backward needs is an input or an
output of its forward. So statistics and residuals are among the outputs, and callers drop those that they do not need.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pycl.backends import registry
from pycl.core import unit as formula
from pycl.core.problem import (
    LEAVES,
    N_GRADED,
    N_MODIFIER_LEAVES,
    N_RESULTS,
    Needs,
    Problem,
    StatsRow,
    no_residuals,
    split_by_modifier,
    stats_blocks,
)
from pycl.core.tracing import needs_dispatch, observed
from pycl.ops.schemas import operators

_INPUTS = len(Problem._fields)
_LEAVES = [Problem._fields.index(name) for name in LEAVES]
_MODIFIERS = Problem._fields.index("modifiers")
_SETTINGS = slice(Problem._fields.index("pairs"), _MODIFIERS + 1)  # all other fields are tensors or None
_PLAIN = len(LEAVES) - N_MODIFIER_LEAVES  # the leaves of a problem without modifiers
_SCALE = Problem._fields.index("logit_scale")
_BESIDE = 4  # arguments of a fused loss before the leaves
_ROW_VALUES = Problem._fields.index("row_values")


def apply(rule: type[torch.autograd.Function], *args: Any) -> Any:
    """``rule.apply`` without the binding of its signature: that costs 12 us, and there is nothing to bind."""
    if forward_ad._current_level >= 0:
        _refuse_tangents(args)
    if observed():
        return rule.apply(*_apart(args))
    return super(torch.autograd.Function, rule).apply(*args)  # type: ignore[misc]  # what Function.apply ends in


def _apart(args: Sequence[Any]) -> list[Any]:
    """The arguments with views for tensors that were there before, which torch.compile takes once only (torch 2.13)."""
    found: list[Any] = []
    for x in args:
        again = isinstance(x, Tensor) and any(x is y for y in found)
        found.append(x.view_as(x) if again else x)
    return found


def _refuse_tangents(args: Sequence[Any]) -> None:
    """Raise for forward mode. The rules have no ``jvp`` for it: torch.compile would refuse them, or make tangents 0."""
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args):
        raise NotImplementedError(
            "pycl's losses have no forward-mode derivative (torch.func.jvp, jacfwd, forward_ad): take the product of "
            "the tangent with torch.func.grad or vjp, or a dense formula in plain torch"
        )


def _takes(*more: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a forward as many parameters as it has arguments. Otherwise torch.compile hands it the context, too, where
    nothing needs a gradient."""

    def name(forward: Callable[..., Any]) -> Callable[..., Any]:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(given, kind) for given in (*Problem._fields, *more)]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # not every callable has one
        return forward

    return name


def _save(ctx: Any, problem: Sequence[Any], *more: Tensor | None) -> None:
    """Save the fields of a problem and more tensors for ``_restore``."""
    ctx.save_for_backward(*problem[: _SETTINGS.start], *problem[_SETTINGS.stop :], *more)
    ctx.settings = problem[_SETTINGS]


def _restore(ctx: Any) -> tuple[Problem, tuple[Tensor, ...]]:
    saved, first = ctx.saved_tensors, _SETTINGS.start
    last = _INPUTS - len(ctx.settings)  # of the problem's tensors
    return Problem(*saved[:first], *ctx.settings, *saved[first:last]), saved[last:]


def _needs(wanted: Sequence[bool]) -> Needs:
    """From what is wanted of the inputs, in their order."""
    rows, cols, logit_scale, row_bias, col_bias, *of_modifiers = (wanted[i] for i in _LEAVES)
    return Needs(rows or logit_scale, cols, row_bias or col_bias, True in of_modifiers)


class _Rule(torch.autograd.Function):
    generate_vmap_rule = True  # from that of the operators


class OnceDifferentiable(_Rule):
    """Hands a gradient on. The result depends on what the gradient came from, so asking for a derivative raises."""

    @staticmethod
    def forward(gradient: Tensor, *sources: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "pycl's losses can be differentiated once: their backward recomputes the logits and has no derivative of "
            "its own. For second derivatives use a dense formula in plain torch."
        )


def _gradients(
    ctx: Any, leaves: Sequence[Tensor | None], found: Sequence[Tensor], rest: int, *d_results: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Map an operator's gradients onto the inputs of the Function, ``None`` where none is needed."""
    points = found[:_PLAIN]
    if len(found) > _PLAIN and found[_PLAIN].numel():
        points = (*points, *split_by_modifier(found[_PLAIN], leaves))
    gradients: list[Tensor | None] = [None] * (_INPUTS + rest)
    for i, leaf, gradient in zip(_LEAVES, leaves, points, strict=False):
        if ctx.needs_input_grad[i]:
            of_scale = i == _SCALE and leaf is not None and leaf.dim() == 0
            gradients[i] = gradient.sum() if of_scale else gradient
    return tuple(_once(gradients, *leaves, *d_results))


def _once(gradients: list[Tensor | None], *sources: Tensor | None) -> list[Tensor | None]:
    """The same gradients; with ``create_graph=True`` such as can be differentiated no more."""
    if not torch.is_grad_enabled():
        return gradients
    return [None if gradient is None else apply(OnceDifferentiable, gradient, *sources) for gradient in gradients]


class StatsFunction(_Rule):
    """The statistics of the rows, and with ``both_sides`` of the columns; with slopes a log-sum-exp for each of them.

    Three more outputs are for the backward: all statistics of the rows, all of the columns, and the residuals.
    """

    @staticmethod
    @_takes("slopes", "both_sides", "save", "backend", "sharded")
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *arguments, sharded = args
        row_stats, col_stats, residuals = (sharded or operators).pair_stats(*arguments)
        slopes, both_sides = args[_INPUTS : _INPUTS + 2]
        sides = (row_stats, col_stats) if both_sides else (row_stats,)
        of_side = _results_of_slopes if slopes else _results
        return *(result for side in sides for result in of_side(side)), row_stats, col_stats, residuals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *_, ctx.backend, sharded = inputs
        ctx.slopes, ctx.operators = inputs[_INPUTS], sharded or operators
        *stats, row_stats, col_stats, residuals = output
        _save(ctx, inputs[:_INPUTS], row_stats, col_stats, residuals)
        counts = stats[StatsRow.POS_COUNT :: N_RESULTS]
        ctx.mark_non_differentiable(*counts, row_stats, col_stats, residuals)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *d_stats: Tensor | None) -> tuple[Tensor | None, ...]:
        problem, saved = _restore(ctx)
        d_sides = [None if d is None else d.contiguous() for d in d_stats[:-3]]
        d_rows, d_cols = d_sides[:N_GRADED], d_sides[N_RESULTS:][:N_GRADED] or [None] * N_GRADED
        found = ctx.operators.pair_stats_backward(
            *problem, ctx.slopes, *saved, *d_rows, *d_cols, _needs(ctx.needs_input_grad), ctx.backend
        )
        return _gradients(ctx, problem.leaves(), found, 5, *d_sides)


class PrefixFunction(_Rule):
    """The statistics of the rows for every prefix, and with ``both_sides`` of the columns, [prefixes, n] each.

    Two more outputs are for the backward: all statistics of the rows and of the columns.
    """

    @staticmethod
    @_takes("row_factor", "col_factor", "ends", "both_sides", "backend")
    def forward(*args: Any) -> tuple[Tensor, ...]:
        row_stats, col_stats = operators.prefix_stats(*args)
        sides = (row_stats, col_stats) if args[-2] else (row_stats,)
        results = (result for side in sides for result in stats_blocks(side).unbind(1)[:N_RESULTS])
        return *results, row_stats, col_stats

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        row_factor, col_factor, ctx.ends, _, ctx.backend = inputs[_INPUTS:]
        *stats, row_stats, col_stats = output
        _save(ctx, inputs[:_INPUTS], row_factor, col_factor, row_stats, col_stats)
        ctx.mark_non_differentiable(*stats[StatsRow.POS_COUNT :: N_RESULTS], row_stats, col_stats)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *d_stats: Tensor | None) -> tuple[Tensor | None, ...]:
        problem, (*factors, row_stats, col_stats) = _restore(ctx)
        d_sides = [None if d is None else d.contiguous() for d in d_stats[:-2]]
        d_rows, d_cols = d_sides[:N_GRADED], d_sides[N_RESULTS:][:N_GRADED] or [None] * N_GRADED
        needs = _needs(ctx.needs_input_grad)
        *of_points, d_row_factor, d_col_factor = operators.prefix_stats_backward(
            *problem, *factors, ctx.ends, row_stats, col_stats, *d_rows, *d_cols, needs, ctx.backend
        )
        sources = *factors, *d_sides
        gradients = list(_gradients(ctx, problem.leaves(), of_points, 5, *sources))
        for k, gradient in enumerate((d_row_factor, d_col_factor), _INPUTS):
            if ctx.needs_input_grad[k]:
                once = torch.is_grad_enabled()  # create_graph=True
                gradients[k] = apply(OnceDifferentiable, gradient, *problem.leaves(), *sources) if once else gradient
        return tuple(gradients)


def _results(stats: Tensor) -> Sequence[Tensor]:
    return stats.unbind()[:N_RESULTS]


def _results_of_slopes(stats: Tensor) -> Sequence[Tensor]:
    """The log-sum-exps [S, n] of all slopes, and the sums and the counts [n] of the logits."""
    lse, pos_lse, *_ = stats_blocks(stats).unbind(1)
    return lse, pos_lse, *stats[StatsRow.POS_SUM : N_RESULTS].unbind()


class SumFunction(_Rule):
    """The sums of a map, how many of their terms are not 0, and the residuals for the backward.

    The weight of the positives has no gradient.
    """

    @staticmethod
    @_takes("map", "positive_weight", "counted", "save", "backend", "sharded")
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        *arguments, sharded = args
        return cast("tuple[Tensor, Tensor, Tensor]", (sharded or operators).pair_sum(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.map, positive_weight, _, _, ctx.backend, sharded = inputs[_INPUTS:]
        ctx.operators = sharded or operators
        _save(ctx, inputs[:_INPUTS], positive_weight, output[2])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        problem, (positive_weight, residuals) = _restore(ctx)
        given = ctx.map, positive_weight, residuals, d_sum.contiguous(), _needs(ctx.needs_input_grad), ctx.backend
        found = ctx.operators.pair_sum_backward(*problem, *given)
        return _gradients(ctx, problem.leaves(), found, 6, d_sum)


def wants_gradient(problem: Problem) -> bool:
    """Whether a backward may follow."""
    return torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in problem.used_leaves())


def fused_loss(operator: str, problem: Problem, weights: tuple[Any, ...], backend: str) -> Tensor:
    """The total of a backend's fused operator, with its gradients where such may be asked for."""
    leaves = problem.used_leaves()
    if wants_gradient(problem):
        return cast("Tensor", apply(FusedLossFunction, operator, problem, weights, backend, *leaves))
    if forward_ad._current_level >= 0:
        _refuse_tangents(leaves)
    return cast("Tensor", getattr(registry.load(backend), operator)(problem, *weights, [False] * len(leaves))[0])


class FusedLossFunction(torch.autograd.Function):
    """A scalar that comes with its gradients. The backward multiplies them by its own gradient, if that is not 1.

    Only for eager execution: the gradients are not among the outputs. Its inputs are what may need a gradient, for each
    one takes time; the rest of the problem comes beside them.
    """

    @staticmethod
    def forward(
        ctx: Any, operator: str, problem: Problem, weights: tuple[Any, ...], backend: str, *leaves: Tensor | None
    ) -> Tensor:
        wanted = ctx.needs_input_grad[_BESIDE:]
        total, *gradients = getattr(registry.load(backend), operator)(problem, *weights, wanted)
        ctx.save_for_backward(*gradients, *leaves)
        return cast("Tensor", total)

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        found, leaves = list(saved[: len(saved) // 2]), saved[len(saved) // 2 :]
        # A loss is mostly the end of a graph that is used once: the gradients are handed out as they are. If the graph
        # is kept, they might be changed in place before the next backward, so copies are handed out.
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        if again or needs_dispatch((d_total,)) or float(d_total) != 1:
            found = [None if gradient is None else gradient * d_total for gradient in found]
        return *(None,) * _BESIDE, *_once(found, *leaves, d_total)


class LogitsFunction(_Rule):
    @staticmethod
    @_takes("backend")
    def forward(*args: Any) -> Tensor:
        return cast("Tensor", operators.pair_logits(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend = inputs[-1]
        _save(ctx, inputs[:_INPUTS])

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        problem, _ = _restore(ctx)
        needs = _needs(ctx.needs_input_grad)
        found = operators.pair_logits_backward(*problem, d_logits, needs, ctx.backend)
        return _gradients(ctx, problem.leaves(), found, 1, d_logits)


class ExtremesFunction(_Rule):
    """The positions of the largest negatives and the smallest positives, [2, m] of the rows and [2, n] of the columns.

    Then their logits, [m] each, and with ``both_sides`` [n] each.
    """

    @staticmethod
    @_takes("both_sides", "backend", "sharded")
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *arguments, sharded = args
        values, index, col_values, col_index = (sharded or operators).pair_extremes(*arguments)
        apart = torch.ops.aten.unbind_copy.int  # views would refuse to be changed in place
        of_cols = apart(col_values) if args[_INPUTS] else ()
        return index, col_index, *apart(values), *of_cols

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *_, ctx.backend, sharded = inputs
        ctx.operators = sharded or operators
        indices = output[:2]
        _save(ctx, inputs[:_INPUTS], *indices)
        ctx.mark_non_differentiable(*indices)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *d_found: Tensor | None) -> tuple[Tensor | None, ...]:
        problem, indices = _restore(ctx)
        d_rows, d_cols = ([None if d is None else d.contiguous() for d in d_found[k : k + 2]] for k in (2, 4))
        needs = _needs(ctx.needs_input_grad)
        given = *d_rows, *(d_cols or (None, None))
        found = ctx.operators.pair_extremes_backward(*problem, *indices, *given, needs, ctx.backend)
        return _gradients(ctx, problem.leaves(), found, 3, *given)


class MeanLogitFunction(_Rule):
    """The mean of the logits under the rows' softmax, and its log-sum-exp, which has no gradient.

    A logit's gradient is that of the mean times ``p (1 + l - mean)``. This is a multiple of the slope of x e^x at
    ``l - mean``, and so the backward that of a sum.
    """

    @staticmethod
    @_takes("backend", "sharded")
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        *fields, backend, sharded = args
        means, lse = (sharded or operators).pair_average(*fields, None, backend)
        return means.squeeze(1), lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *_, ctx.backend, sharded = inputs
        ctx.operators = sharded or operators
        _save(ctx, inputs[:_INPUTS], *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        problem, (mean, lse) = _restore(ctx)
        slope = d_mean * (mean - lse).exp().masked_fill(lse == -torch.inf, 0)  # at most d_mean: the mean is below lse
        shifted, needs = problem.shifted(-mean), _needs(ctx.needs_input_grad)
        more = "logit_exp", None, no_residuals(problem), slope, needs, ctx.backend
        return _gradients(ctx, shifted.leaves(), ctx.operators.pair_sum_backward(*shifted, *more), 2, d_mean)


class AverageFunction(_Rule):
    """The means of values under the rows' softmax, and for the backward the shift that makes exp(l) its weights."""

    @staticmethod
    @_takes("values", "backend", "sharded")
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        *fields, values, backend, sharded = args
        means, lse = (sharded or operators).pair_average(*fields, values, backend)
        return means, -lse.masked_fill(lse == -torch.inf, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *_, values, ctx.backend, sharded = inputs
        ctx.operators = sharded or operators
        _save(ctx, inputs[:_INPUTS], values, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        problem, (values, out, shift) = _restore(ctx)
        d_out = d_out.contiguous()
        along, of_values = (d_out * out).sum(1), ctx.needs_input_grad[_INPUTS]
        more = values, d_out, along, of_values, _needs(ctx.needs_input_grad), ctx.backend
        shifted = problem.shifted(shift)
        d_values, *found = ctx.operators.pair_average_backward(*shifted, *more)
        gradients = list(_gradients(ctx, shifted.leaves(), found, 3, values, d_out))
        of_row_values = gradients[_ROW_VALUES]
        if of_row_values is not None:
            gradients[_ROW_VALUES] = of_row_values[:, :-1]  # not of the shift
        if of_values:
            d_values = d_values.to(values.dtype)
            if torch.is_grad_enabled():  # create_graph=True
                d_values = apply(OnceDifferentiable, d_values, *problem.leaves(), values, d_out)
            gradients[_INPUTS] = d_values
        return tuple(gradients)


class UnitFunction(torch.autograd.Function):
    """Rows at unit length. Only for eager execution, as who calls it chooses; second derivatives are the formula's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, backend: str) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(z)
        return cast("Tensor", operators.unit(z, backend))

    @staticmethod
    def backward(ctx: Any, d_unit: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        if not create_graph and forward_ad._current_level < 0:
            return operators.unit_backward(z, d_unit, ctx.backend), None
        with torch.enable_grad():
            view = z.view_as(z)  # hooks on z are not for this gradient
            (d_z,) = torch.autograd.grad(formula.unit(view), view, d_unit, create_graph=create_graph)
        return d_z, None
