# SPDX-License-Identifier: Apache-2.0
"""Log-sum-exps of several multiples of the logits: those of a slope are of a problem with another scale and biases.

Each slope is a sweep of its own, with a product of its own: the kernels keep one log-sum-exp in their registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pycl.core.problem import Gradients, Problem, StatsRow, accumulation_dtype, stats_blocks


class OfSlope(NamedTuple):
    """One slope's part of a backward: its problem, its statistics and their gradients."""

    slope: float
    problem: Problem
    stats: tuple[Tensor, Tensor]  # of the rows and of the columns
    d_stats: tuple[list[Tensor | None], list[Tensor | None]]


def steeper(problem: Problem, slope: float) -> Problem:
    """The problem whose logits are a slope times those of this one, which has no modifiers."""
    p = problem
    row_bias, col_bias = (None if bias is None else bias * slope for bias in (p.row_bias, p.col_bias))
    return p._replace(logit_scale=p.logit_scale * slope, row_bias=row_bias, col_bias=col_bias)


def joined(stats: Sequence[Tensor], slopes: Sequence[float]) -> Tensor:
    """The statistics of all slopes; sums are those of the logits themselves."""
    for block, slope in zip(stats, slopes, strict=True):
        block[StatsRow.POS_SUM] /= slope
    return torch.cat(list(stats))


def parts(
    problem: Problem,
    slopes: Sequence[float],
    stats: tuple[Tensor, Tensor],
    d_stats: tuple[list[Tensor | None], list[Tensor | None]],
) -> Iterator[OfSlope]:
    """The backwards of one slope each that add up to that of all. The first has the gradients of the sums."""
    of_rows, of_cols = map(stats_blocks, stats)
    for k, slope in enumerate(slopes):
        given = _of_slope(d_stats[0], k, slope), _of_slope(d_stats[1], k, slope)
        if k == 0 or any(d is not None for side in given for d in side):
            yield OfSlope(slope, steeper(problem, slope), (of_rows[k], of_cols[k]), given)


def _of_slope(d_stats: list[Tensor | None], k: int, slope: float) -> list[Tensor | None]:
    *d_lses, d_pos_sum = d_stats
    of_sum = None if d_pos_sum is None or k else d_pos_sum / slope
    return [*(None if d is None else d[k].contiguous() for d in d_lses), of_sum]


def added_up(found: Iterable[tuple[float, Gradients]]) -> Gradients:
    """The gradients of a problem from those of its multiples, added in float32 whatever the points' dtype."""
    total: list[Tensor] = []
    for slope, g in found:
        own = g._replace(logit_scale=g.logit_scale * slope, row_bias=g.row_bias * slope, col_bias=g.col_bias * slope)
        total = total or [torch.zeros_like(x, dtype=accumulation_dtype(x.dtype)) for x in own]
        for a, x in zip(total, own, strict=True):
            a += x
    return Gradients(*(a.to(x.dtype) for a, x in zip(total, own, strict=True)))
