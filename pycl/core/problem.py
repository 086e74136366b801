# SPDX-License-Identifier: Apache-2.0
"""What crosses the boundary between the engine and a backend: problems, what is wanted of them, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pycl.core.modifiers import KINDS


class Labels(NamedTuple):
    """Integers of the points of both sides, int64."""

    row_ids: Tensor
    row_views: Tensor
    col_ids: Tensor
    col_views: Tensor


def default_labels(n: int, n_views: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and views of n points that came without, views-major: ``n / n_views`` instances in each view."""
    position = torch.arange(n, device=device)
    n_instances = n // n_views
    return position % n_instances, position // n_instances


class Problem(NamedTuple):
    """Everything that defines the logits and the pair sets; ``cols=None`` says the matrix is symmetric.

    Vectors are contiguous; the scale and the biases have the accumulation dtype. Points without labels are views-major:
    of n points on a side, point i is of instance ``i % (n / n_views)`` and of view ``i // (n / n_views)``. In a
    symmetric problem the one bias serves rows and columns, and gradients of both roles are summed.

    ``pairs`` is the first pair set of an operator: the denominator of a softmax, the negatives of a logistic loss, the
    pairs that are looked at. ``positives`` is the second, and empty for operators of one set.

    ``modifiers`` change the logits, as :mod:`pycl.core.modifiers` says, by the tensors after it: integers of the points
    [m, K] and [n, K], numbers of the points [m, R] and [n, C], and shared numbers [S] in the accumulation dtype, all
    contiguous. Those of the columns are None in a symmetric problem.
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
    pairs: int
    positives: int
    offset: int | None
    normalize: bool
    n_views: int = 1
    modifiers: Sequence[int] = ()
    row_codes: Tensor | None = None
    col_codes: Tensor | None = None
    row_values: Tensor | None = None
    col_values: Tensor | None = None
    shared: Tensor | None = None

    def n_cols(self) -> int:
        return self.rows.shape[0] if self.cols is None else self.cols.shape[0]

    def leaves(self) -> tuple[Tensor | None, ...]:
        """What has gradients, in the order of ``LEAVES``."""
        p = self
        return p.rows, p.cols, p.logit_scale, p.row_bias, p.col_bias, p.row_values, p.col_values, p.shared

    def used_leaves(self) -> tuple[Tensor | None, ...]:
        """The same, without those of modifiers where there are none."""
        return self.leaves() if self.modifiers else self.leaves()[:-N_MODIFIER_LEAVES]

    def shifted(self, shift: Tensor) -> Problem:
        """With a number of each row added to its logits, of which limits see nothing. It has no gradient."""
        p = self
        if not p.modifiers:
            return p._replace(row_bias=shift if p.row_bias is None else p.row_bias + shift)
        column = shift[:, None]
        values = column if p.row_values is None else torch.cat([p.row_values, column], 1)
        return p._replace(modifiers=(*p.modifiers, KINDS.index("row_shift"), 0, 0), row_values=values)

    def transposed(self) -> Problem:
        """The transposed matrix; only with columns of its own, one scale for all rows and no modifiers."""
        p = self
        assert p.cols is not None
        assert not p.modifiers
        return Problem(
            *(p.cols, p.rows, p.col_ids, p.col_views, p.row_ids, p.row_views, p.logit_scale, p.col_bias, p.row_bias),
            *(p.pairs, p.positives, None if p.offset is None else -p.offset, p.normalize, p.n_views),
        )

    def as_rectangular(self) -> Problem:
        """The same problem with columns of its own: an operator that serves rows alone needs both triangles."""
        if self.cols is not None:
            return self
        p = self
        return p._replace(
            cols=p.rows,
            col_ids=p.row_ids,
            col_views=p.row_views,
            col_bias=p.row_bias,
            col_codes=p.row_codes,
            col_values=p.row_values,
        )

    def labels(self) -> Labels:
        """The labels of the rows and of the columns, made where there are none."""
        if self.row_ids is None or self.row_views is None:
            of_rows = default_labels(self.rows.shape[0], self.n_views, self.rows.device)
            if self.cols is None:
                return Labels(*of_rows, *of_rows)
            return Labels(*of_rows, *default_labels(self.cols.shape[0], self.n_views, self.rows.device))
        if self.col_ids is None or self.col_views is None:
            return Labels(self.row_ids, self.row_views, self.row_ids, self.row_views)
        return Labels(self.row_ids, self.row_views, self.col_ids, self.col_views)

    def with_labels(self) -> Problem:
        """The same problem with its labels written out."""
        row_ids, row_views, col_ids, col_views = self.labels()
        of_cols = (None, None) if self.cols is None else (col_ids, col_views)
        return self._replace(row_ids=row_ids, row_views=row_views, col_ids=of_cols[0], col_views=of_cols[1], n_views=1)


class StatsRow:
    """Rows of the statistics ``[6, n]`` that a backend returns for n points. No enum: torch.compile indexes by none.

    The first three have gradients. The last two are the log-sum-exps in units of log 2. The backward exponentiates
    them, and ranks of a group merge them: converted from nats they would be off by a rounding, which a large logit
    turns into a visible error of its weight. A backend whose backward reads the first two rows leaves the last two
    at 0.

    With slopes there is such a block of rows for each of them, one after the other: the log-sum-exps are those of slope
    times the logits, the sums and the counts those of the logits. With prefixes of the features there is a block for
    each prefix.
    """

    LSE = 0
    POS_LSE = 1
    POS_SUM = 2
    POS_COUNT = 3
    LSE_LOG2 = 4
    POS_LSE_LOG2 = 5


N_STATS = 6  # rows of the statistics, of each slope
N_RESULTS = 4  # the first ones, which the engine returns
N_GRADED = 3  # the first ones, which have gradients
MAX_SLOPES = 8  # of one sweep; csrc/cpu/problem.h has the same
NORM_EPS = 1e-12  # as torch.nn.functional.normalize
MAX_PREFIXES = 16  # of one sweep, and what all of them but the last are a multiple of; csrc/cpu/problem.h has both
PREFIX_UNIT = 32


def slopes_or_one(slopes: Sequence[float]) -> Sequence[float]:
    """The slopes an operator was given; without any, the log-sum-exps are those of the logits."""
    return slopes or (1.0,)


def stats_blocks(stats: Tensor) -> Tensor:
    """Statistics ``[n_slopes, N_STATS, n]``, a view: the block of each slope."""
    return stats.view(stats.shape[0] // N_STATS, N_STATS, stats.shape[1])


# The functions of a logit that ``pair_sum`` adds up; csrc/cpu/problem.h has them in this order.
MAPS = ("softplus", "square", "relu", "exp", "logit_exp")


# The fields of a problem that have gradients: those of Gradients, then the parts of its last one.
LEAVES = ("rows", "cols", "logit_scale", "row_bias", "col_bias", "row_values", "col_values", "shared")
N_MODIFIER_LEAVES = 3


class Needs(NamedTuple):
    """Which gradients a backward has to produce; the scale's comes with the rows'."""

    rows: bool
    cols: bool
    bias: bool
    modifiers: bool = False


class Gradients(NamedTuple):
    """One entry per differentiable input; what was not asked for is empty.

    ``logit_scale`` has one entry per row; in a symmetric problem only their sum is defined. ``modifiers`` has those of
    ``row_values``, ``col_values`` (none in a symmetric problem) and ``shared``, one after the other: one tensor, as
    most problems have none of it.
    """

    rows: Tensor
    cols: Tensor
    logit_scale: Tensor
    row_bias: Tensor
    col_bias: Tensor
    modifiers: Tensor


class PrefixGradients(NamedTuple):
    """Of ``prefix_stats``: those of the points as in ``Gradients``, those of both factors, which are always there."""

    rows: Tensor
    cols: Tensor
    row_factor: Tensor
    col_factor: Tensor


class SinkhornProblem(NamedTuple):
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


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_whole(name: str, z: Tensor) -> None:
    """Refuse a DTensor: operators would take this rank's shard for the whole tensor."""
    if type(z) is not Tensor and type(z).__name__ == "DTensor":
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor: pass {name}.to_local() with the group of its mesh, "
            f"group=mesh.get_group(), or {name}.full_tensor()"
        )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 accumulates in itself, everything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_gradients(
    problem: Problem, needs: Needs, points: Callable[[tuple[int, int], torch.dtype], Tensor] | None = None
) -> Gradients:
    """Uninitialised gradients of the right shapes: what a backend fills and what tracing sees.

    ``points`` allocates those of the points, the large ones, where a backend has memory of its own.
    """
    rows, cols = problem.rows, problem.cols
    (m, d), n = rows.shape, problem.n_cols()
    new, dtype = rows.new_empty, accumulation_dtype(rows.dtype)
    numbers = new if dtype == rows.dtype else partial(new, dtype=dtype)  # a dtype by name takes a fifth of the time
    large = points or (lambda shape, _: new(shape))
    return Gradients(
        rows=large((m, d), rows.dtype) if needs.rows else new(0),
        cols=large((n, d), rows.dtype) if needs.cols and cols is not None else new(0),
        logit_scale=numbers(m if needs.rows else 0),
        row_bias=numbers(m if needs.bias else 0),
        col_bias=numbers(n if needs.bias and cols is not None else 0),
        modifiers=numbers(modifier_size(problem) if needs.modifiers else 0),
    )


def modifier_size(problem: Problem) -> int:
    """The numbers of ``Gradients.modifiers``."""
    return sum(x.numel() for x in problem.leaves()[-N_MODIFIER_LEAVES:] if x is not None)


def split_by_modifier(joined: Tensor, leaves: Sequence[Tensor | None]) -> list[Tensor]:
    """Views of ``Gradients.modifiers``: those of the values of the rows and the columns, and of what is shared."""
    like = leaves[-N_MODIFIER_LEAVES:]
    parts = joined.split([0 if x is None else x.numel() for x in like])
    return [part if x is None else part.view(x.shape) for part, x in zip(parts, like, strict=True)]


def empty_values_gradient(problem: Problem, values: Tensor, wanted: bool) -> Tensor:
    """The same for the values that are averaged, in the accumulation dtype."""
    return values.new_empty(values.shape if wanted else (0,), dtype=accumulation_dtype(problem.rows.dtype))


def empty_average(problem: Problem, values: Tensor | None) -> tuple[Tensor, Tensor]:
    """Uninitialised means of the values, or of the logits, and log-sum-exps."""
    m, dtype = problem.rows.shape[0], accumulation_dtype(problem.rows.dtype)  # len() would fix it in a traced graph
    means = problem.rows.new_empty(m, 1 if values is None else values.shape[1], dtype=dtype)
    return means, means.new_empty(m)


def no_residuals(problem: Problem) -> Tensor:
    """The residuals of a forward that leaves its backward nothing to reuse: 0.

    Nobody reads those of a GPU, where a 0 would take a launch.
    """
    new = problem.rows.new_zeros if problem.rows.is_cpu else problem.rows.new_empty
    return new((1,), dtype=torch.int64)
