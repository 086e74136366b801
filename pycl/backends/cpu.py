# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: hands pointers to the compiled tile loops and picks the instruction set once."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycl.backends import buffers as pages
from pycl.backends.compiled import extension

# no tile loop for these: nearly all of their time is torch's product
from pycl.backends.reference import pair_logits as pair_logits
from pycl.backends.reference import pair_logits_backward as pair_logits_backward
from pycl.backends.reference import pair_top as pair_top
from pycl.backends.registry import BackendUnavailable
from pycl.core import precision
from pycl.core.problem import (
    STATE,
    STATS,
    Gradients,
    Labels,
    Needs,
    Problem,
    Transport,
    accumulation_dtype,
    empty_gradients,
    nothing_kept,
)
from pycl.core.sinkhorn import solve

# Products of a small problem wait for the backward, which then computes two of three: what the matrix would take, where
# that stays in a cache.
KEPT_BYTES = 8 << 20
# The largest matrix whose totals come with their gradients: sums save a product at any size, the others only calls.
AT_ONCE = {"pair_sum_total": math.inf, "pair_cross_entropy": KEPT_BYTES}

DEVICES = ("cpu",)
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

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


def _matrix(z: Tensor) -> tuple[int, int, int, int, int, int]:
    return z.data_ptr(), z.shape[0], z.shape[1], z.stride(0), z.stride(1), DTYPES[z.dtype]


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None or x.numel() == 0 else x.data_ptr()


def _compiled(problem: Problem) -> Any:
    p = problem
    labels = None if p.row_ids is None else _narrow(p.labelled())
    compiled = _C.Problem(
        rows=_matrix(p.rows),
        cols=_matrix(p.rows if p.cols is None else p.cols),
        labels=(0, 0, 0, 0) if labels is None else tuple(map(Tensor.data_ptr, labels)),
        row_bias=_pointer(p.row_bias),
        col_bias=_pointer(p.row_bias if p.cols is None else p.col_bias),
        symmetric=p.cols is None,
        logit_scale=p.logit_scale.data_ptr(),
        scale_per_row=p.logit_scale.dim() == 1,
        denominator=p.denominator,
        positives=p.positives,
        has_self=p.offset is not None,
        offset=p.offset or 0,
        normalize=p.normalize,
        precision=precision.of_cpu() == "medium",
        threads=torch.get_num_threads(),
    )
    compiled.keep_alive = labels
    return compiled


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


def _keep(problem: Problem, compiled: Any) -> Tensor:
    """Where a backward follows, let the kernel leave the products of a small problem behind an empty tensor."""
    wanted = any(x is not None and x.requires_grad for x in problem.leaves())
    room = compiled.kept_bytes() if wanted else 0
    if not 0 < room <= KEPT_BYTES:
        return nothing_kept(problem)
    kept = problem.rows.new_empty(-(-room // problem.rows.itemsize))
    compiled.keep_at(kept.data_ptr())
    return kept.resize_(0)  # in place, of a size that is the same for tracing; the memory stays


def _find(compiled: Any, kept: Tensor) -> None:
    """Let the kernel have the products of a forward; a copy of what ``_keep`` returned has none."""
    storage = kept.untyped_storage()
    if storage.nbytes() >= compiled.kept_bytes():
        compiled.keep_at(storage.data_ptr())


def pair_stats(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor, Tensor]:
    n = problem.n_cols() if both_sides and problem.cols is not None else 0
    dtype = accumulation_dtype(problem.rows.dtype)
    row_stats, col_stats = (torch.empty(STATS + STATE, size, dtype=dtype) for size in (len(problem.rows), n))
    compiled = _compiled(problem)
    kept = _keep(problem, compiled)
    _C.pair_stats(compiled, row_stats.data_ptr(), _pointer(col_stats))
    return row_stats, col_stats, kept


def pair_stats_backward(
    problem: Problem,
    row_stats: Tensor,
    col_stats: Tensor,
    kept: Tensor,
    d_row_stats: list[Tensor | None],
    d_col_stats: list[Tensor | None],
    needs: Needs,
) -> Gradients:
    out = empty_gradients(problem, needs)
    d_stats = [[_pointer(d) for d in side] for side in (d_row_stats, d_col_stats)]
    stats = _pointer(row_stats), _pointer(col_stats)
    compiled = _compiled(problem)
    _find(compiled, kept)
    _C.pair_stats_backward(compiled, *stats, *d_stats, list(map(_pointer, out)))
    return out


def pair_sum(problem: Problem) -> tuple[Tensor, Tensor]:
    out = torch.empty(len(problem.rows), dtype=accumulation_dtype(problem.rows.dtype))
    compiled = _compiled(problem)
    kept = _keep(problem, compiled)
    _C.pair_sum(compiled, out.data_ptr())
    return out, kept


def pair_cross_entropy(
    problem: Problem, both_sides: bool, lse: float, pos_sum: float, needs: Needs
) -> tuple[Tensor, ...]:
    total = torch.empty((), dtype=accumulation_dtype(problem.rows.dtype))
    gradients = empty_gradients(problem, needs)
    out = total.data_ptr(), list(map(_pointer, gradients))
    _C.pair_cross_entropy(_compiled(problem), lse, pos_sum, both_sides, *out)
    return total, *gradients


def pair_sum_total(problem: Problem, weight: float, needs: Needs) -> tuple[Tensor, ...]:
    total = torch.empty((), dtype=accumulation_dtype(problem.rows.dtype))
    gradients = empty_gradients(problem, needs)
    _C.pair_sum_total(_compiled(problem), weight, total.data_ptr(), list(map(_pointer, gradients)))
    return total, *gradients


def pair_sum_backward(problem: Problem, kept: Tensor, d_sum: Tensor, needs: Needs) -> Gradients:
    out = empty_gradients(problem, needs)
    compiled = _compiled(problem)
    _find(compiled, kept)
    _C.pair_sum_backward(compiled, d_sum.data_ptr(), list(map(_pointer, out)))
    return out


def pair_weighted_sum(problem: Problem, values: Tensor) -> Tensor:
    out = torch.empty(len(problem.rows), values.shape[1], dtype=accumulation_dtype(problem.rows.dtype))
    _C.pair_weighted_sum(_compiled(problem), _matrix(values), out.data_ptr())
    return out


def _transport(t: Transport) -> tuple[Any, ...]:
    return _matrix(t.scores), t.epsilon, _pointer(t.sample_target)


def sinkhorn_scores(z: Tensor, prototypes: Tensor) -> Tensor:
    dtype = accumulation_dtype(z.dtype)
    scores = pages.empty((len(z), len(prototypes)), dtype)
    return torch.mm(z.to(dtype), prototypes.to(dtype).T, out=scores)


def sinkhorn_columns(t: Transport, potential: Tensor | None) -> Tensor:
    lse = torch.empty(t.scores.shape[1], dtype=accumulation_dtype(t.scores.dtype))
    if t.scores.shape[0] == 0:  # a rank of a group without samples
        return lse.fill_(-torch.inf)
    _C.sinkhorn_columns(*_transport(t), _pointer(potential), lse.data_ptr(), torch.get_num_threads())
    return lse


def sinkhorn_samples(t: Transport, potential: Tensor) -> Tensor:
    lse = potential.new_empty(len(t.scores))
    address = potential.data_ptr(), lse.data_ptr()
    _C.sinkhorn_samples(_matrix(t.scores), t.epsilon, *address, torch.get_num_threads())
    return lse


def sinkhorn_codes(t: Transport, potential: Tensor) -> tuple[Tensor, Tensor]:
    codes = pages.empty(t.scores.shape, t.dtype) if t.out is None else t.out
    u = potential.new_empty(len(t.scores))
    if t.scores.shape[0]:
        out = DTYPES[t.dtype], codes.data_ptr(), u.data_ptr()
        _C.sinkhorn_codes(*_transport(t), potential.data_ptr(), *out, torch.get_num_threads())
    return codes, u


sinkhorn = partial(solve, sinkhorn_columns, sinkhorn_codes)
