# SPDX-License-Identifier: Apache-2.0
"""The operators ``torch.ops.pycl.*``: schemas, shapes for tracing, and the hand-over to a backend.

Operators are opaque to ``torch.compile`` and carry no autograd: gradients live in ``autograd.py`` alone. All of them
share one argument list, the ``Problem``; a backend is a module with one function for each operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import backends


class Labels(NamedTuple):
    """Integers of the points of both sides, int64."""

    row_ids: Tensor
    row_views: Tensor
    col_ids: Tensor
    col_views: Tensor


def numbered(z: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and views of points that came without: instances of their own, all of one view."""
    n, device = z.shape[0], z.device
    return torch.arange(n, device=device), torch.zeros(n, dtype=torch.int64, device=device)


class Problem(NamedTuple):
    """Everything that defines the logits and the pair sets; ``cols=None`` says the matrix is symmetric.

    Vectors are contiguous; the scale and the biases have the accumulation dtype. Without labels the points of each side
    are numbered and of one view. In a symmetric problem the one bias serves rows and columns, and gradients of both
    roles are summed.
    """

    rows: Tensor
    cols: Tensor | None
    row_ids: Tensor | None
    row_views: Tensor | None
    col_ids: Tensor | None
    col_views: Tensor | None
    logit_scale: Tensor
    row_bias: Tensor | None
    col_bias: Tensor | None
    denominator: int
    positives: int
    offset: int | None
    normalize: bool

    @property
    def n_cols(self) -> int:
        return self.rows.shape[0] if self.cols is None else self.cols.shape[0]

    def exchanged(self) -> Problem:
        """The transposed matrix; only with columns of its own and one scale for all rows."""
        p = self
        assert p.cols is not None
        return Problem(
            *(p.cols, p.rows, p.col_ids, p.col_views, p.row_ids, p.row_views, p.logit_scale, p.col_bias, p.row_bias),
            *(p.denominator, p.positives, None if p.offset is None else -p.offset, p.normalize),
        )

    def labelled(self) -> Labels:
        """The labels of the rows and of the columns, made where there are none."""
        if self.row_ids is None or self.row_views is None:
            return Labels(*numbered(self.rows), *numbered(self.rows if self.cols is None else self.cols))
        if self.col_ids is None or self.col_views is None:
            return Labels(self.row_ids, self.row_views, self.row_ids, self.row_views)
        return Labels(self.row_ids, self.row_views, self.col_ids, self.col_views)


class Needs(NamedTuple):
    """Which gradients a backward has to produce; the scale's comes with the rows'."""

    rows: bool
    cols: bool
    bias: bool


class Gradients(NamedTuple):
    """One entry per differentiable input; what was not asked for is empty.

    ``logit_scale`` has one entry per row; in a symmetric problem only their sum is defined.
    """

    rows: Tensor
    cols: Tensor
    logit_scale: Tensor
    row_bias: Tensor
    col_bias: Tensor


class Transport(NamedTuple):
    """A Sinkhorn problem on stored scores [B, K] of unit column stride; the marginals as logarithms.

    ``sample_target`` is log(B a_b), None for uniform, and ``prototype_target`` log(B m_k), in the accumulation dtype.
    """

    scores: Tensor
    epsilon: float
    iterations: int
    sample_target: Tensor | None
    prototype_target: Tensor
    dtype: torch.dtype  # of the codes: that of the scores, or float32
    out: Tensor | None = None  # contiguous, where the codes go; maybe the scores themselves

    def new_codes(self) -> Tensor:
        """``out``, or memory for the codes."""
        return self.scores.new_empty(self.scores.shape, dtype=self.dtype) if self.out is None else self.out


# Rows of the statistics: lse, pos_lse, pos_sum, pos_count, then what the backend keeps for its own backward. The first
# three have gradients, handed over as a list of three contiguous vectors or None.
STATS, STATE = 4, 2


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 accumulates in itself, everything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


_PROBLEM = (
    "Tensor rows, Tensor? cols, Tensor? row_ids, Tensor? row_views, Tensor? col_ids, Tensor? col_views, "
    "Tensor logit_scale, Tensor? row_bias, Tensor? col_bias, int denominator, int positives, SymInt? offset, "
    "bool normalize"
)
_GRADIENTS = "(Tensor, Tensor, Tensor, Tensor, Tensor)"
_WIDTH = len(Problem._fields)

_library = torch.library.Library("pycl", "DEF")
_library.define(f"pair_stats({_PROBLEM}, bool both_sides, str backend) -> (Tensor, Tensor)")
_library.define(
    f"pair_stats_backward({_PROBLEM}, Tensor row_stats, Tensor col_stats, "
    f"Tensor?[] d_row_stats, Tensor?[] d_col_stats, bool[3] needs, str backend) -> {_GRADIENTS}"
)
_library.define(f"pair_sum({_PROBLEM}, str backend) -> Tensor")
_library.define(f"pair_sum_backward({_PROBLEM}, Tensor sums, Tensor d_sum, bool[3] needs, str backend) -> {_GRADIENTS}")
# The sums and the gradients of their total from one sweep; a backend may lack it.
_library.define(f"pair_sum_gradients({_PROBLEM}, bool[3] needs, str backend) -> (Tensor, {_GRADIENTS[1:]}")
# The operators below always get columns, and their pair set is the denominator; d_logits may have any strides.
_library.define(f"pair_logits({_PROBLEM}, str backend) -> Tensor")
_library.define(f"pair_logits_backward({_PROBLEM}, Tensor d_logits, bool[3] needs, str backend) -> {_GRADIENTS}")
_library.define(f"pair_top({_PROBLEM}, SymInt k, str backend) -> (Tensor, Tensor)")
# sum_j exp(l_ij) v_j over the denominator [m, dv], in the accumulation dtype; the caller's biases keep it in range.
_library.define(f"pair_weighted_sum({_PROBLEM}, Tensor values, str backend) -> Tensor")
# Codes and the potentials of the samples and of the prototypes.
_library.define(
    "sinkhorn(Tensor scores, float epsilon, int iterations, Tensor? sample_target, Tensor prototype_target, "
    "ScalarType dtype, str backend) -> (Tensor, Tensor, Tensor)"
)


def _stats(*args: Any) -> tuple[Tensor, Tensor]:
    problem, (both_sides, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
    return cast("tuple[Tensor, Tensor]", backends.load(backend).pair_stats(problem, both_sides))


def _stats_backward(*args: Any) -> Gradients:
    problem, (*tensors, needs, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
    return cast(Gradients, backends.load(backend).pair_stats_backward(problem, *tensors, Needs(*needs)))


def _sum(*args: Any) -> Tensor:
    return cast(Tensor, backends.load(args[_WIDTH]).pair_sum(Problem(*args[:_WIDTH])))


def _sum_backward(*args: Any) -> Gradients:
    problem, (sums, d_sum, needs, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
    return cast(Gradients, backends.load(backend).pair_sum_backward(problem, sums, d_sum, Needs(*needs)))


def _sum_gradients(*args: Any) -> tuple[Tensor, ...]:
    problem, (needs, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
    return cast("tuple[Tensor, ...]", backends.load(backend).pair_sum_gradients(problem, Needs(*needs)))


def _logits(*args: Any) -> Tensor:
    return cast(Tensor, backends.load(args[_WIDTH]).pair_logits(Problem(*args[:_WIDTH])))


def _logits_backward(*args: Any) -> Gradients:
    problem, (d_logits, needs, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
    return cast(Gradients, backends.load(backend).pair_logits_backward(problem, d_logits, Needs(*needs)))


def _top(*args: Any) -> tuple[Tensor, Tensor]:
    problem, (k, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
    return cast("tuple[Tensor, Tensor]", backends.load(backend).pair_top(problem, k))


def _weighted_sum(*args: Any) -> Tensor:
    problem, (values, backend) = Problem(*args[:_WIDTH]), args[_WIDTH:]
    return cast(Tensor, backends.load(backend).pair_weighted_sum(problem, values))


def _sinkhorn(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *transport, backend = args
    return cast("tuple[Tensor, Tensor, Tensor]", backends.load(backend).sinkhorn(Transport(*transport)))


def _stats_fake(*args: Any) -> tuple[Tensor, Tensor]:
    problem, both_sides = Problem(*args[:_WIDTH]), args[_WIDTH]
    dtype = accumulation_dtype(problem.rows.dtype)
    n = problem.n_cols if both_sides and problem.cols is not None else 0
    new = problem.rows.new_empty
    return new(STATS + STATE, problem.rows.shape[0], dtype=dtype), new(STATS + STATE, n, dtype=dtype)


def _sum_fake(*args: Any) -> Tensor:
    rows = Problem(*args[:_WIDTH]).rows
    return rows.new_empty(rows.shape[0], dtype=accumulation_dtype(rows.dtype))


def _logits_fake(*args: Any) -> Tensor:
    problem = Problem(*args[:_WIDTH])
    return problem.rows.new_empty(problem.rows.shape[0], problem.n_cols)


def _top_fake(*args: Any) -> tuple[Tensor, Tensor]:
    rows, k = Problem(*args[:_WIDTH]).rows, args[_WIDTH]
    shape = rows.shape[0], k
    return rows.new_empty(shape, dtype=accumulation_dtype(rows.dtype)), rows.new_empty(shape, dtype=torch.int64)


def _weighted_sum_fake(*args: Any) -> Tensor:
    rows, values = Problem(*args[:_WIDTH]).rows, args[_WIDTH]
    return rows.new_empty(rows.shape[0], values.shape[1], dtype=accumulation_dtype(rows.dtype))


def _sinkhorn_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    t = Transport(*args[:-1])
    new, dtype = t.scores.new_empty, accumulation_dtype(t.scores.dtype)
    n_samples, n_prototypes = t.scores.shape
    return t.new_codes(), new(n_samples, dtype=dtype), new(n_prototypes, dtype=dtype)


def empty_gradients(problem: Problem, needs: Needs) -> Gradients:
    """Uninitialised gradients of the right shapes: what a backend fills and what tracing sees."""
    rows, cols = problem.rows, problem.cols
    m, n = rows.shape[0], problem.n_cols
    dtype = accumulation_dtype(rows.dtype)
    has_cols = needs.cols and cols is not None
    return Gradients(
        rows=rows.new_empty(rows.shape if needs.rows else (0,)),
        cols=rows.new_empty((n, rows.shape[1]) if has_cols else (0,), dtype=(rows if cols is None else cols).dtype),
        logit_scale=rows.new_empty(m if needs.rows else 0, dtype=dtype),
        row_bias=rows.new_empty(m if needs.bias else 0, dtype=dtype),
        col_bias=rows.new_empty(n if needs.bias and cols is not None else 0, dtype=dtype),
    )


def _backward_fake(*args: Any) -> Gradients:
    needs: Sequence[bool] = args[-2]
    return empty_gradients(Problem(*args[:_WIDTH]), Needs(*needs))


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


def _sum_gradients_fake(*args: Any) -> tuple[Tensor, ...]:
    return _sum_fake(*args[:-2], args[-1]), *_backward_fake(*args)


for _name, _implementation, _fake in (
    ("pair_stats", _stats, _stats_fake),
    ("pair_stats_backward", _stats_backward, _backward_fake),
    ("pair_sum", _sum, _sum_fake),
    ("pair_sum_backward", _sum_backward, _backward_fake),
    ("pair_sum_gradients", _sum_gradients, _sum_gradients_fake),
    ("pair_logits", _logits, _logits_fake),
    ("pair_logits_backward", _logits_backward, _backward_fake),
    ("pair_top", _top, _top_fake),
    ("pair_weighted_sum", _weighted_sum, _weighted_sum_fake),
    ("sinkhorn", _sinkhorn, _sinkhorn_fake),
):
    _library.impl(_name, _without_grad(_implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"pycl::{_name}", _fake, lib=_library)
