# SPDX-License-Identifier: Apache-2.0
"""The operators ``torch.ops.pycl.*``: schemas, shapes for tracing, and the hand-over to a backend.

Operators are opaque to ``torch.compile`` and carry no autograd: gradients live in ``autograd.py`` alone. All of them
on pairs share one argument list, the ``Problem``; a backend is a module with one function for each operator. Those of
Sinkhorn are in ``transport_ops.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pycl.backends import registry as backends
from pycl.core.problem import STATE, STATS, Gradients, Needs, Problem, accumulation_dtype, empty_gradients, nothing_kept

_PROBLEM = (
    "Tensor rows, Tensor? cols, Tensor? row_ids, Tensor? row_views, Tensor? col_ids, Tensor? col_views, "
    "Tensor logit_scale, Tensor? row_bias, Tensor? col_bias, int denominator, int positives, SymInt? offset, "
    "bool normalize"
)
_NEEDS = "bool[3] needs"
# of lse, pos_lse and pos_sum of each side: no list, through which no vmap can see
_SLOPES = ", ".join(f"Tensor? d_{side}_{name}" for side in ("row", "col") for name in ("lse", "pos_lse", "pos_sum"))
_GRADIENTS = "Tensor, Tensor, Tensor, Tensor, Tensor"
_WIDTH = len(Problem._fields)


def _stats_shapes(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor, Tensor]:
    new, dtype = problem.rows.new_empty, accumulation_dtype(problem.rows.dtype)
    n = problem.n_cols() if both_sides and problem.cols is not None else 0
    stats = new(STATS + STATE, problem.rows.shape[0], dtype=dtype), new(STATS + STATE, n, dtype=dtype)
    return *stats, nothing_kept(problem)


def _sum_shape(problem: Problem) -> tuple[Tensor, Tensor]:
    rows = problem.rows
    return rows.new_empty(rows.shape[0], dtype=accumulation_dtype(rows.dtype)), nothing_kept(problem)


def _logits_shape(problem: Problem) -> Tensor:
    return problem.rows.new_empty(problem.rows.shape[0], problem.n_cols())


def _top_shapes(problem: Problem, k: int) -> tuple[Tensor, Tensor]:
    new, shape = problem.rows.new_empty, (problem.rows.shape[0], k)
    return new(shape, dtype=accumulation_dtype(problem.rows.dtype)), new(shape, dtype=torch.int64)


def _weighted_sum_shape(problem: Problem, values: Tensor) -> Tensor:
    rows = problem.rows
    return rows.new_empty(rows.shape[0], values.shape[1], dtype=accumulation_dtype(rows.dtype))


def _backward_shapes(problem: Problem, *more: Any) -> Gradients:
    return empty_gradients(problem, more[-1])


def _total_shapes(problem: Problem, *more: Any) -> tuple[Tensor, ...]:
    rows = problem.rows
    return rows.new_empty((), dtype=accumulation_dtype(rows.dtype)), *empty_gradients(problem, more[-1])


# name, arguments beyond the problem, results, their shapes
_PAIRS: tuple[tuple[str, str, str, Callable[..., Any]], ...] = (
    # Beside its results a forward returns what its backward may use: an empty tensor, with whatever the backend keeps
    # in the memory behind it. Nothing a user gets shares that memory.
    ("pair_stats", "bool both_sides", "Tensor, Tensor, Tensor", _stats_shapes),
    (
        "pair_stats_backward",
        f"Tensor row_stats, Tensor col_stats, Tensor kept, {_SLOPES}, {_NEEDS}",
        _GRADIENTS,
        _backward_shapes,
    ),
    ("pair_sum", "", "Tensor, Tensor", _sum_shape),
    ("pair_sum_backward", f"Tensor kept, Tensor d_sum, {_NEEDS}", _GRADIENTS, _backward_shapes),
    # Totals and their gradients at once, from operators that a backend may lack: of lse and pos_sum, each times its
    # weight, over the rows or both sides; of the sums times one weight.
    (
        "pair_cross_entropy",
        f"bool both_sides, float lse, float pos_sum, {_NEEDS}",
        f"Tensor, {_GRADIENTS}",
        _total_shapes,
    ),
    ("pair_sum_total", f"float weight, {_NEEDS}", f"Tensor, {_GRADIENTS}", _total_shapes),
    # The operators below always get columns, and their pair set is the denominator; d_logits may have any strides.
    ("pair_logits", "", "Tensor", _logits_shape),
    ("pair_logits_backward", f"Tensor d_logits, {_NEEDS}", _GRADIENTS, _backward_shapes),
    ("pair_top", "SymInt k", "Tensor, Tensor", _top_shapes),
    # sum_j exp(l_ij) v_j over the denominator [m, dv], in the accumulation dtype; the caller's biases keep it in range.
    ("pair_weighted_sum", "Tensor values", "Tensor", _weighted_sum_shape),
)


def _unpacked(body: Callable[..., Any], has_needs: bool) -> Callable[..., Any]:
    """``body(backend, problem, *more)`` on the arguments of an operator."""

    def run(*args: Any) -> Any:
        *more, backend = args[_WIDTH:]
        if has_needs:
            more[-1] = Needs(*more[-1])
        return body(backend, Problem(*args[:_WIDTH]), *more)

    return run


def _run(name: str) -> Callable[..., Any]:
    return lambda backend, *args: getattr(backends.load(backend), name)(*args)


def _stats_backward(backend: str, problem: Problem, *args: Any) -> Gradients:
    *saved, needs = args
    saved, d_row_stats, d_col_stats = saved[:-6], saved[-6:-3], saved[-3:]
    found: Gradients = backends.load(backend).pair_stats_backward(problem, *saved, d_row_stats, d_col_stats, needs)
    return found


def _without_grad(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """With ``create_graph=True`` a backward runs in grad mode, and backends write into tensors of their own.

    ``torch.no_grad()`` as a decorator, without its two changes of the mode where there is nothing to change.
    """

    def run(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return implementation(*args)
        with torch.no_grad():
            return implementation(*args)

    return run


_library = torch.library.Library("pycl", "DEF")


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


def register(
    name: str, arguments: str, results: str, implementation: Callable[..., Any], traced: Callable[..., Any]
) -> None:
    """An operator of these arguments and the backend's name."""
    _library.define(f"{name}({arguments}, str backend) -> ({results})")
    _library.impl(name, _without_grad(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"pycl::{name}", traced, lib=_library)
    torch.library.register_vmap(f"pycl::{name}", _one_by_one(name), lib=_library)


for _name, _more, _results, _shapes in _PAIRS:
    _arguments, _has_needs = f"{_PROBLEM}, {_more}" if _more else _PROBLEM, _NEEDS in _more
    register(
        _name,
        _arguments,
        _results,
        _unpacked(_stats_backward if _name == "pair_stats_backward" else _run(_name), _has_needs),
        _unpacked(lambda _backend, *a, _shapes=_shapes: _shapes(*a), _has_needs),
    )
