# SPDX-License-Identifier: Apache-2.0
"""The operators ``torch.ops.pycl.*``: schemas, shapes for tracing, and the hand-over to a backend.

Operators are opaque to ``torch.compile`` and carry no autograd: gradients live in ``autograd.py`` alone. All of them
on pairs share one argument list, the ``Problem``; a backend is a module with one function for each operator. Those of
Sinkhorn are in ``sinkhorn.py``, those of rows at unit length in ``unit.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycl.backends import registry
from pycl.core.problem import (
    N_STATS,
    Gradients,
    Needs,
    PrefixGradients,
    Problem,
    accumulation_dtype,
    empty_average,
    empty_gradients,
    empty_values_gradient,
    no_residuals,
    slopes_or_one,
)
from pycl.core.tracing import needs_dispatch

_PROBLEM = (
    "Tensor rows, Tensor? cols, Tensor? row_ids, Tensor? row_views, Tensor? col_ids, Tensor? col_views, "
    "Tensor logit_scale, Tensor? row_bias, Tensor? col_bias, int pairs, int positives, SymInt? offset, "
    "bool normalize, int n_views, SymInt[] modifiers, Tensor? row_codes, Tensor? col_codes, Tensor? row_values, "
    "Tensor? col_values, Tensor? shared"
)
_NEEDS = "bool[4] needs"
# the gradients of lse, pos_lse and pos_sum of each side; not as a list, into which vmap cannot look
_D_STATS = ", ".join(f"Tensor? d_{side}_{name}" for side in ("row", "col") for name in ("lse", "pos_lse", "pos_sum"))
_D_EXTREMES = ", ".join(f"Tensor? d_{side}_{name}" for side in ("row", "col") for name in ("negative", "positive"))
_TERMS = "str map, Tensor? positive_weight"  # what is summed, and the factor of the positives' terms [m], or 1
_PREFIXES = "Tensor row_factor, Tensor col_factor, SymInt[] ends"
_GRADIENTS = ", ".join("Tensor" for _ in Gradients._fields)
_WIDTH = len(Problem._fields)


def _stats_shapes(
    problem: Problem, slopes: Sequence[float], both_sides: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    new, dtype = problem.rows.new_empty, accumulation_dtype(problem.rows.dtype)
    n = problem.n_cols() if both_sides and problem.cols is not None else 0
    height = N_STATS * len(slopes_or_one(slopes))
    stats = new(height, problem.rows.shape[0], dtype=dtype), new(height, n, dtype=dtype)
    return *stats, no_residuals(problem)


def _prefix_shapes(
    problem: Problem, row_factor: Tensor, col_factor: Tensor, ends: Sequence[int], both_sides: bool
) -> tuple[Tensor, Tensor]:
    n = problem.n_cols() if both_sides and problem.cols is not None else 0
    height = N_STATS * len(ends)
    return row_factor.new_empty(height, len(problem.rows)), row_factor.new_empty(height, n)


def _prefix_backward_shapes(problem: Problem, *factors: Any) -> PrefixGradients:
    found, like = empty_gradients(problem, factors[-1]), torch.empty_like
    return PrefixGradients(found.rows, found.cols, *map(like, factors[:2]))


def _sum_shapes(
    problem: Problem, map: str, positive_weight: Tensor | None, counted: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = problem.rows, accumulation_dtype(problem.rows.dtype)
    counts = rows.new_empty(rows.shape[0] if counted else 0, dtype=dtype)
    return rows.new_empty(rows.shape[0], dtype=dtype), counts, no_residuals(problem)


def _logits_shape(problem: Problem) -> Tensor:
    return problem.rows.new_empty(problem.rows.shape[0], problem.n_cols())


def _top_shapes(problem: Problem, k: int, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    new, dtype = problem.rows.new_empty, accumulation_dtype(problem.rows.dtype)
    m, n = problem.rows.shape[0], problem.n_cols() if both_sides else 0
    rows = new(m, k, dtype=dtype), new(m, k, dtype=torch.int64)
    return *rows, new(n, k, dtype=dtype), new(n, k, dtype=torch.int64)


def _extremes_shapes(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    new, dtype = problem.rows.new_empty, accumulation_dtype(problem.rows.dtype)
    m, n = problem.rows.shape[0], problem.n_cols() if both_sides else 0
    rows = new(2, m, dtype=dtype), new(2, m, dtype=torch.int64)
    return *rows, new(2, n, dtype=dtype), new(2, n, dtype=torch.int64)


def _average_backward_shapes(problem: Problem, values: Tensor, *more: Any) -> tuple[Tensor, ...]:
    *_, of_values, needs = more
    return empty_values_gradient(problem, values, of_values), *empty_gradients(problem, needs)


def _backward_shapes(problem: Problem, *more: Any) -> Gradients:
    return empty_gradients(problem, more[-1])


class _Operator(NamedTuple):
    """An operator on a ``Problem``: what it takes beyond the problem, its results, and their shapes."""

    name: str
    arguments: str
    results: str
    shapes: Callable[..., Any]


_OPERATORS = (
    # With `save` a forward leaves its residuals for the backward: an output of its own, that no user gets. For tracing
    # it is empty; the memory behind it is the backend's. Without slopes there is one log-sum-exp, of the logits.
    _Operator("pair_stats", "float[] slopes, bool both_sides, bool save", "Tensor, Tensor, Tensor", _stats_shapes),
    _Operator(
        "pair_stats_backward",
        f"float[] slopes, Tensor row_stats, Tensor col_stats, Tensor residuals, {_D_STATS}, {_NEEDS}",
        _GRADIENTS,
        _backward_shapes,
    ),
    # Of prefixes of the features, up to each of the ends; a backend may lack the two. The problem has neither a scale
    # nor norms: factors [ends, m] and [ends, n] make logits of products.
    _Operator("prefix_stats", f"{_PREFIXES}, bool both_sides", "Tensor, Tensor", _prefix_shapes),
    _Operator(
        "prefix_stats_backward",
        f"{_PREFIXES}, Tensor row_stats, Tensor col_stats, {_D_STATS}, {_NEEDS}",
        ", ".join("Tensor" for _ in PrefixGradients._fields),
        _prefix_backward_shapes,
    ),
    # of one of MAPS; the counts of the terms that are not 0 are empty unless asked for
    _Operator("pair_sum", f"{_TERMS}, bool counted, bool save", "Tensor, Tensor, Tensor", _sum_shapes),
    _Operator("pair_sum_backward", f"{_TERMS}, Tensor residuals, Tensor d_sum, {_NEEDS}", _GRADIENTS, _backward_shapes),
    # The operators below always get columns; d_logits may have any strides.
    _Operator("pair_logits", "", "Tensor", _logits_shape),
    _Operator("pair_logits_backward", f"Tensor d_logits, {_NEEDS}", _GRADIENTS, _backward_shapes),
    _Operator("pair_top", "SymInt k, bool both_sides", "Tensor, Tensor, Tensor, Tensor", _top_shapes),
    _Operator("pair_extremes", "bool both_sides", "Tensor, Tensor, Tensor, Tensor", _extremes_shapes),
    _Operator(
        "pair_extremes_backward",
        f"Tensor row_index, Tensor col_index, {_D_EXTREMES}, {_NEEDS}",
        _GRADIENTS,
        _backward_shapes,
    ),
    # Softmax means, of the logits where there are no values, and log-sum-exps. For the gradients of the former the
    # latter are subtracted from the logits, and along_i is <d_out_i, mean_i>.
    _Operator("pair_average", "Tensor? values", "Tensor, Tensor", empty_average),
    _Operator(
        "pair_average_backward",
        f"Tensor values, Tensor d_out, Tensor along, bool of_values, {_NEEDS}",
        f"Tensor, {_GRADIENTS}",
        _average_backward_shapes,
    ),
)


def _problem_first(name: str) -> Callable[..., list[Any]]:
    """From the arguments of an operator to those of the backend's function, which begin with the problem."""
    has_needs, has_d_stats = name.endswith("_backward"), name.endswith("stats_backward")
    has_d_extremes = name.endswith("extremes_backward")

    def arrange(*args: Any) -> list[Any]:
        arranged = [Problem._make(args[:_WIDTH]), *args[_WIDTH:-1]]
        if has_needs:
            arranged[-1] = Needs(*arranged[-1])
        if has_d_stats:
            arranged[-7:-1] = arranged[-7:-4], arranged[-4:-1]
        if has_d_extremes:
            arranged[-5:-1] = arranged[-5:-3], arranged[-3:-1]
        return arranged

    return arrange


_library = torch.library.Library("pycl", "DEF")
operators = SimpleNamespace()
"""By name, each a function that goes straight to the backend where nobody can tell: the dispatcher takes 25 us."""


def register(
    name: str,
    arguments: str,
    results: str,
    arrange: Callable[..., Sequence[Any]],
    shapes: Callable[..., Any],
    function: str | None = None,
) -> None:
    """Define an operator with these arguments and the name of a backend; its body calls the backend's ``function``.

    ``arrange`` makes the arguments of the function and of ``shapes``. ``shapes`` returns results without values, for
    tracing. The last argument of an operator ``..._out`` is the memory for the first result of the function.
    """
    function, has_out = function or name, name.endswith("_out")

    def call_backend(*args: Any) -> Any:
        run = getattr(registry.load(args[-1]), function)
        if not torch.is_grad_enabled():
            found = run(*arrange(*args))
        else:  # create_graph=True runs a backward in grad mode, and backends write into tensors of their own
            with torch.no_grad():
                found = run(*arrange(*args))
        return _rest(found, args[-2]) if has_out else found

    def call(*args: Any) -> Any:
        by_dispatcher = needs_dispatch(args) or torch._C._autograd._profiler_enabled()
        return getattr(torch.ops.pycl, name)(*args) if by_dispatcher else call_backend(*args)

    setattr(operators, name, call)
    _library.define(f"{name}({arguments}, str backend) -> ({results})")
    _library.impl(name, call_backend, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pycl::{name}", lambda *args: shapes(*arrange(*args)), lib=_library)
    torch.library.register_vmap(f"pycl::{name}", _one_by_one(name), lib=_library)


def _rest(found: tuple[Tensor, ...], out: Tensor) -> Tensor | tuple[Tensor, ...]:
    """All results but the first, which is ``out``. Autograd is told that ``out`` changed: a backward may need it."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return found[1] if len(found) == 2 else found[1:]


def _one_by_one(name: str) -> Callable[..., Any]:
    """The rule of an operator for torch.vmap: kernels take one problem at a time."""

    def run(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        operator = getattr(torch.ops.pycl, name)
        found = [
            operator(*(x.select(dim, k) if isinstance(dim, int) else x for x, dim in zip(args, in_dims, strict=True)))
            for k in range(info.batch_size)
        ]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])

    return run


for _operator in _OPERATORS:
    register(
        _operator.name,
        f"{_PROBLEM}, {_operator.arguments}" if _operator.arguments else _PROBLEM,
        _operator.results,
        _problem_first(_operator.name),
        _operator.shapes,
    )
