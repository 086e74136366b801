# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: hands pointers to the compiled tile loops and picks the instruction set once."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycl.backends import workspace
from pycl.backends.compiled import extension

# these have no tile loop: torch's product takes nearly all of their time, and chosen pairs are few
from pycl.backends.reference import pair_extremes_backward as pair_extremes_backward
from pycl.backends.reference import pair_logits as pair_logits
from pycl.backends.reference import pair_logits_backward as pair_logits_backward
from pycl.backends.reference import pair_top as pair_top
from pycl.backends.registry import BackendUnavailable
from pycl.core import precision
from pycl.core.modifiers import WIDTH, forms
from pycl.core.problem import (
    MAPS,
    N_MODIFIER_LEAVES,
    N_STATS,
    Gradients,
    Labels,
    Needs,
    PrefixGradients,
    Problem,
    SinkhornProblem,
    accumulation_dtype,
    empty_average,
    empty_gradients,
    empty_values_gradient,
    modifier_size,
    no_residuals,
    slopes_or_one,
    split_by_modifier,
)

DEVICES = ("cpu",)
MODIFIERS = ("label_table", "agreement", "pair_mlp", "limit", "row_shift")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

# What a thread must have to do. Sinkhorn of 64 x 512 scores took one thread 76 us, two threads 68, or 32 ms where other
# programs had the cores. A step of 64 x 64 points took one thread 169 us, two 133 (128 features), or 124 and 116 (64).
ELEMENTS_PER_THREAD = 1 << 15  # of scores, of features that are normalised
PRODUCTS_PER_ELEMENT = 8  # of numbers, in the place of one element

# Memory of results that is used again. Below, malloc is quicker, and a step of 192 x 512 points has 2 page faults; one
# of 256 x 512 would have 38.
CACHED_BYTES = 512 << 10

try:
    _C: Any = extension()
except ImportError as error:
    raise BackendUnavailable(f"backend='cpu' is not available: {error}") from error

if (Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").exists():
    _C.use_thread_pool_of(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))

try:
    ISA: str = _C.select_isa(os.environ.get("PYCL_CPU_ISA", ""))
except ValueError as error:
    raise BackendUnavailable(f"backend='cpu' is not available: PYCL_CPU_ISA: {error}") from error


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` in memory that serves the next result when the last tensor on it is gone."""
    size = math.prod(shape) * dtype.itemsize
    if size < CACHED_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")  # whatever the default device
    return torch.frombuffer(_C.Memory(size), dtype=dtype).view(shape)


def _empty_like(z: Tensor) -> Tensor:
    """The same for a contiguous tensor of the shape and dtype of ``z``."""
    if z.nbytes < CACHED_BYTES:
        return torch.empty_like(z, memory_format=torch.contiguous_format)  # half the time that it takes with a shape
    return _empty(z.shape, z.dtype)


def _threads(elements: int) -> int:
    """No more threads than have enough to do."""
    return max(1, min(torch.get_num_threads(), elements // ELEMENTS_PER_THREAD))


def _matrix(z: Tensor) -> tuple[int, int, int, int, int, int]:
    return z.data_ptr(), *z.shape, *z.stride(), DTYPES[z.dtype]


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None or x.numel() == 0 else x.data_ptr()


def _compiled(problem: Problem) -> Any:
    p = problem
    labels = None if p.row_ids is None else _narrow(p.labels())
    cols, col_bias = (p.rows, p.row_bias) if p.cols is None else (p.cols, p.col_bias)
    compiled = _C.Problem(  # by position: sixteen names take 3.6 us
        _matrix(p.rows),
        _matrix(cols),
        (0, 0, 0, 0) if labels is None else tuple(map(Tensor.data_ptr, labels)),
        p.n_views,
        _pointer(p.row_bias),
        _pointer(col_bias),
        p.cols is None,
        p.logit_scale.data_ptr(),
        p.logit_scale.dim() == 1,
        p.pairs,
        p.positives,
        p.offset is not None,
        p.offset or 0,
        p.normalize,
        precision.of_cpu() == "medium",
        _threads(p.rows.numel() * cols.shape[0] // PRODUCTS_PER_ELEMENT),
    )
    compiled.keep_alive = labels
    if p.modifiers:
        codes = _narrow_codes(p)
        sides = (*codes, p.row_values, p.row_values if p.cols is None else p.col_values, p.shared)
        compiled.modify([*zip(*(iter(p.modifiers),) * WIDTH, strict=True)], tuple(map(_pointer, sides)))
        compiled.keep_alive = labels, codes
    return compiled


def _narrow_codes(problem: Problem) -> tuple[Tensor | None, Tensor | None]:
    """The codes of the rows and of the columns; labels that are only compared in a range of 31 bits, as ``_narrow``."""
    p = problem
    rows, cols = p.row_codes, p.row_codes if p.cols is None else p.col_codes
    if rows is None or cols is None:
        return None, None
    for form in forms(p.modifiers):
        if form.kind == "agreement":
            for t in range(form.codes.start, form.codes.stop):
                given = rows[:, t].contiguous(), cols[:, t].contiguous()
                narrow = _narrow_pair(*given)
                if narrow[0] is not given[0]:
                    rows, cols = rows.clone(), cols.clone()
                    rows[:, t], cols[:, t] = narrow
    return rows, cols


def _narrow(labels: Labels) -> Labels:
    """The same labels in a range of 31 bits, the width the tiles compare: dense ranks where they are spread wider."""
    row_ids, col_ids = _narrow_pair(labels.row_ids, labels.col_ids)
    row_views, col_views = _narrow_pair(labels.row_views, labels.col_views)
    return Labels(row_ids, row_views, col_ids, col_views)


def _narrow_pair(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    if not _C.is_wide(rows.data_ptr(), rows.numel(), cols.data_ptr(), cols.numel()):
        return rows, cols
    ranks = torch.unique(torch.cat([rows, cols]), return_inverse=True)[1]
    return ranks[: rows.numel()], ranks[rows.numel() :]


def _write_residuals(problem: Problem, compiled: Any, save: bool) -> Tensor:
    """Let the forward keep products in the workspace; the tensor that is returned keeps them there."""
    number = workspace.take(compiled.residual_bytes) if save else 0
    _use_workspace(compiled, number)
    return workspace.ticket(number) if number else no_residuals(problem)


def _read_residuals(compiled: Any, residuals: Tensor) -> None:
    """Let the backward read the products of its forward."""
    _use_workspace(compiled, workspace.of_ticket(residuals))


def _use_workspace(compiled: Any, number: int) -> None:
    memory = workspace.memory_of(number)
    if memory is not None:
        compiled.residuals_at(memory.data_ptr(), memory.numel())


def _gradients(problem: Problem, needs: Needs) -> Gradients:
    return empty_gradients(problem, needs, _empty)


def _gradients_of_leaves(problem: Problem, wanted: Sequence[bool]) -> tuple[list[Tensor | None], list[int]]:
    """Memory for the gradients of a total, one for each leaf, None where none is needed; and the addresses."""
    p, leaves, new = problem, problem.used_leaves(), problem.logit_scale.new_empty
    rows, cols, scale, row_bias, col_bias, *of_modifiers = wanted
    out = [
        _empty_like(p.rows) if rows or scale else None,  # the scale's comes with it
        _empty_like(p.cols) if cols and p.cols is not None else None,
        torch.empty_like(p.logit_scale) if scale else None,
        new(p.row_bias.shape) if row_bias and p.row_bias is not None else None,
        new(p.col_bias.shape) if col_bias and p.col_bias is not None else None,
    ]
    addresses = [*map(_pointer, out), 0]
    if p.modifiers:
        joined = new(modifier_size(p) if True in of_modifiers else 0)
        parts = split_by_modifier(joined, leaves) if joined.numel() else [None] * N_MODIFIER_LEAVES
        out += [None if x is None else part for x, part in zip(leaves[-N_MODIFIER_LEAVES:], parts, strict=True)]
        addresses[-1] = _pointer(joined)
    return out, addresses


def pair_stats(
    problem: Problem, slopes: Sequence[float], both_sides: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n = problem.n_cols() if both_sides and problem.cols is not None else 0
    dtype = accumulation_dtype(problem.rows.dtype)
    height = N_STATS * len(slopes_or_one(slopes))
    row_stats, col_stats = (torch.empty(height, size, dtype=dtype, device="cpu") for size in (len(problem.rows), n))
    compiled = _compiled(problem)
    residuals = _write_residuals(problem, compiled, save)
    _C.pair_stats(compiled, row_stats.data_ptr(), _pointer(col_stats), slopes)
    return row_stats, col_stats, residuals


def pair_stats_backward(
    problem: Problem,
    slopes: Sequence[float],
    row_stats: Tensor,
    col_stats: Tensor,
    residuals: Tensor,
    d_row_stats: list[Tensor | None],
    d_col_stats: list[Tensor | None],
    needs: Needs,
) -> Gradients:
    out = _gradients(problem, needs)
    d_stats = [[_pointer(d) for d in side] for side in (d_row_stats, d_col_stats)]
    stats = _pointer(row_stats), _pointer(col_stats)
    compiled = _compiled(problem)
    _read_residuals(compiled, residuals)
    _C.pair_stats_backward(compiled, *stats, *d_stats, list(map(_pointer, out)), slopes)
    return out


def prefix_stats(
    problem: Problem, row_factor: Tensor, col_factor: Tensor, ends: Sequence[int], both_sides: bool
) -> tuple[Tensor, Tensor]:
    n = problem.n_cols() if both_sides and problem.cols is not None else 0
    height, dtype = N_STATS * len(ends), row_factor.dtype
    row_stats, col_stats = (torch.empty(height, size, dtype=dtype, device="cpu") for size in (len(problem.rows), n))
    factors = row_factor.data_ptr(), col_factor.data_ptr()
    _C.prefix_stats(_compiled(problem), ends, *factors, row_stats.data_ptr(), _pointer(col_stats))
    return row_stats, col_stats


def prefix_stats_backward(
    problem: Problem,
    row_factor: Tensor,
    col_factor: Tensor,
    ends: Sequence[int],
    row_stats: Tensor,
    col_stats: Tensor,
    d_row_stats: list[Tensor | None],
    d_col_stats: list[Tensor | None],
    needs: Needs,
) -> PrefixGradients:
    of_points = _gradients(problem, needs)
    out = PrefixGradients(of_points.rows, of_points.cols, torch.empty_like(row_factor), torch.empty_like(col_factor))
    given = row_factor.data_ptr(), col_factor.data_ptr(), row_stats.data_ptr(), _pointer(col_stats)
    d_stats = [[_pointer(d) for d in side] for side in (d_row_stats, d_col_stats)]
    _C.prefix_stats_backward(_compiled(problem), ends, *given, *d_stats, list(map(_pointer, out)))
    return out


def _terms(map: str, positive_weight: Tensor | None) -> tuple[int, int]:
    return MAPS.index(map), _pointer(positive_weight)


def pair_sum(
    problem: Problem, map: str, positive_weight: Tensor | None, counted: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    m, dtype = len(problem.rows), accumulation_dtype(problem.rows.dtype)
    sums, counts = (torch.empty(n, dtype=dtype, device="cpu") for n in (m, m if counted else 0))
    compiled = _compiled(problem)
    residuals = _write_residuals(problem, compiled, save)
    _C.pair_sum(compiled, *_terms(map, positive_weight), sums.data_ptr(), _pointer(counts))
    return sums, counts, residuals


def pair_cross_entropy_fused(
    problem: Problem, both_sides: bool, lse: float, pos_sum: float, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    total = problem.logit_scale.new_empty(())
    gradients, out = _gradients_of_leaves(problem, wanted)
    compiled = _compiled(problem)
    number = workspace.take(compiled.residual_bytes) if True in wanted else 0
    _use_workspace(compiled, number)
    try:
        _C.pair_cross_entropy_fused(compiled, lse, pos_sum, both_sides, total.data_ptr(), out)
    finally:
        workspace.give_back(number)
    return total, *gradients


def pair_sum_fused(
    problem: Problem, map: str, positive_weight: Tensor | None, weight: float, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    total = problem.logit_scale.new_empty(())
    gradients, out = _gradients_of_leaves(problem, wanted)
    _C.pair_sum_fused(_compiled(problem), *_terms(map, positive_weight), weight, total.data_ptr(), out)
    return total, *gradients


def pair_sum_backward(
    problem: Problem, map: str, positive_weight: Tensor | None, residuals: Tensor, d_sum: Tensor, needs: Needs
) -> Gradients:
    out = _gradients(problem, needs)
    compiled = _compiled(problem)
    _read_residuals(compiled, residuals)
    _C.pair_sum_backward(
        compiled, *_terms(map, positive_weight), d_sum.data_ptr(), [_pointer(gradient) for gradient in out]
    )
    return out


def pair_average(problem: Problem, values: Tensor | None) -> tuple[Tensor, Tensor]:
    means, lse = empty_average(problem, values)
    given = None if values is None else _matrix(values)
    _C.pair_average(_compiled(problem), given, means.data_ptr(), lse.data_ptr())
    return means, lse


def pair_average_backward(
    problem: Problem, values: Tensor, d_out: Tensor, along: Tensor, of_values: bool, needs: Needs
) -> tuple[Tensor, ...]:
    out, d_values = _gradients(problem, needs), empty_values_gradient(problem, values, of_values)
    given = _matrix(values), _matrix(d_out), along.data_ptr()
    _C.pair_average_backward(_compiled(problem), *given, _pointer(d_values), list(map(_pointer, out)))
    return d_values, *out


def pair_extremes(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m, n, dtype = len(problem.rows), problem.n_cols() if both_sides else 0, accumulation_dtype(problem.rows.dtype)
    values, col_values = (torch.empty(2, size, dtype=dtype, device="cpu") for size in (m, n))
    index, col_index = (torch.empty(2, size, dtype=torch.int64, device="cpu") for size in (m, n))
    of_cols = _pointer(col_values), _pointer(col_index)
    _C.pair_extremes(_compiled(problem), values.data_ptr(), index.data_ptr(), *of_cols)
    return values, index, col_values, col_index


def _scores(t: SinkhornProblem) -> tuple[Any, ...]:
    return _matrix(t.scores), t.epsilon, _pointer(t.sample_target)


def sinkhorn_scores(z: Tensor, prototypes: Tensor) -> Tensor:
    dtype = accumulation_dtype(z.dtype)
    scores = workspace.empty((len(z), len(prototypes)), dtype)
    return torch.mm(z.to(dtype), prototypes.to(dtype).T, out=scores)


def sinkhorn_columns(t: SinkhornProblem, potential: Tensor | None) -> Tensor:
    lse = torch.empty(t.scores.shape[1], dtype=accumulation_dtype(t.scores.dtype), device="cpu")
    if t.scores.shape[0] == 0:  # a rank of a group without samples
        return lse.fill_(-torch.inf)
    _C.sinkhorn_columns(*_scores(t), _pointer(potential), lse.data_ptr(), _threads(t.scores.numel()))
    return lse


def sinkhorn_samples(t: SinkhornProblem, potential: Tensor) -> Tensor:
    lse = potential.new_empty(len(t.scores))
    address = potential.data_ptr(), lse.data_ptr()
    _C.sinkhorn_samples(_matrix(t.scores), t.epsilon, *address, _threads(t.scores.numel()))
    return lse


def sinkhorn_codes(t: SinkhornProblem, potential: Tensor) -> tuple[Tensor, Tensor]:
    codes = _empty(t.scores.shape, t.dtype) if t.out is None else t.out
    u = potential.new_empty(len(t.scores))
    if t.scores.shape[0]:
        out = DTYPES[t.dtype], codes.data_ptr(), u.data_ptr()
        _C.sinkhorn_codes(*_scores(t), potential.data_ptr(), *out, _threads(t.scores.numel()))
    return codes, u


def sinkhorn(t: SinkhornProblem) -> tuple[Tensor, Tensor, Tensor]:
    codes = _empty(t.scores.shape, t.dtype) if t.out is None else t.out
    u, v = t.prototype_target.new_empty(len(t.scores)), torch.empty_like(t.prototype_target)
    out = DTYPES[t.dtype], codes.data_ptr(), u.data_ptr(), v.data_ptr()
    _C.sinkhorn(*_scores(t), t.iterations, t.prototype_target.data_ptr(), *out, _threads(t.scores.numel()))
    return codes, u, v


def unit(z: Tensor) -> Tensor:
    rows, out = _rows(z), _empty(z.shape, accumulation_dtype(z.dtype))
    _C.unit(_matrix(rows), out.data_ptr(), _threads(z.numel()))
    return out


def unit_backward(z: Tensor, d_unit: Tensor) -> Tensor:
    rows, gradient, out = _rows(z), _rows(d_unit), _empty_like(z)
    _C.unit_backward(_matrix(rows), _matrix(gradient), out.data_ptr(), _threads(z.numel()))
    return out


def _rows(z: Tensor) -> Tensor:
    return z if z.dim() == 2 else z.reshape(-1, z.shape[-1])
