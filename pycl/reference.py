# SPDX-License-Identifier: Apache-2.0
"""The reference backend: the engine's operators in plain torch, a strip of rows at a time, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .ops import STATE, STATS, Gradients, Needs, Problem, accumulation_dtype, empty_gradients
from .pairs import Pairs

DEVICES = None  # every device
STRIP = 512  # rows of logits held at once
NORM_EPS = 1e-12  # as torch.nn.functional.normalize


class _Strip(NamedTuple):
    i: slice
    logits: Tensor  # [strip, n]
    in_den: Tensor  # bool [strip, n]
    in_pos: Tensor


class _Side(NamedTuple):
    x: Tensor  # what the product sees: accumulation dtype, normalised where asked
    inv_norm: Tensor | None
    frozen: Tensor | None  # rows shorter than NORM_EPS: their norm is a constant

    def gradient(self, d_x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.inv_norm is not None and self.frozen is not None:
            along = (self.x * d_x).sum(1, keepdim=True).masked_fill(self.frozen, 0)
            d_x = (d_x - self.x * along) * self.inv_norm
            if dtype == torch.float16:  # 1 / NORM_EPS is beyond float16
                d_x = torch.where(self.frozen, d_x.clamp(-65504, 65504), d_x)
        return d_x.to(dtype)


def _side(z: Tensor, normalize: bool) -> _Side:
    x = z.to(accumulation_dtype(z.dtype))
    if not normalize:
        return _Side(x, None, None)
    peak = x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    norm = (x / peak).norm(dim=1, keepdim=True) * peak  # squares of huge and tiny entries leave the range
    inv_norm = 1 / norm.clamp_min(NORM_EPS)
    return _Side(x / peak * (peak * inv_norm), inv_norm, norm < NORM_EPS)


def _sides(problem: Problem) -> tuple[_Side, _Side]:
    rows = _side(problem.rows, problem.normalize)
    return rows, rows if problem.cols is None else _side(problem.cols, problem.normalize)


def _strips(problem: Problem, rows: _Side, cols: _Side) -> Iterator[_Strip]:
    symmetric = problem.cols is None
    col_ids = problem.row_ids if problem.col_ids is None else problem.col_ids
    col_views = problem.row_views if problem.col_views is None else problem.col_views
    col_bias = problem.row_bias if symmetric else problem.col_bias
    scale = problem.logit_scale.expand(len(rows.x))[:, None]
    for start in range(0, len(rows.x), STRIP):
        i = slice(start, min(start + STRIP, len(rows.x)))
        logits = _product(rows.x[i], cols.x.T) * scale[i]
        if problem.row_bias is not None:
            logits = logits + problem.row_bias[i, None]
        if col_bias is not None:
            logits = logits + col_bias
        same_id = problem.row_ids[i, None] == col_ids
        same_view = problem.row_views[i, None] == col_views
        cls = torch.where(
            same_id,
            torch.where(same_view, int(Pairs.POS_SAME_VIEW), int(Pairs.POS_OTHER_VIEW)),
            torch.where(same_view, int(Pairs.NEG_SAME_VIEW), int(Pairs.NEG_OTHER_VIEW)),
        )
        if problem.offset is not None:
            position = torch.arange(i.start, i.stop, device=cls.device) + problem.offset
            cls[position[:, None] == torch.arange(len(col_ids), device=cls.device)] = int(Pairs.SELF)
        yield _Strip(i, logits, (cls & problem.denominator) != 0, (cls & problem.positives) != 0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):  # the inputs' dtype was chosen where they were made
        return a @ b


def _lse(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    return logits.masked_fill(~mask, -torch.inf).logsumexp(dim)


def _reduce(strip: _Strip, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pos_sum = torch.where(strip.in_pos, strip.logits, 0).sum(dim)
    return (
        _lse(strip.logits, strip.in_den, dim),
        _lse(strip.logits, strip.in_pos, dim),
        pos_sum,
        strip.in_pos.sum(dim).to(pos_sum.dtype),
    )


def pair_stats(problem: Problem, both_sides: bool) -> tuple[Tensor, Tensor]:
    rows, cols = _sides(problem)
    both_sides = both_sides and problem.cols is not None
    row_stats = rows.x.new_zeros(STATS + STATE, len(rows.x))
    col_stats = rows.x.new_zeros(STATS + STATE, len(cols.x) if both_sides else 0)
    col_stats[:2] = -torch.inf
    for strip in _strips(problem, rows, cols):
        row_stats[:STATS, strip.i] = torch.stack(_reduce(strip, 1))
        if both_sides:
            part = _reduce(strip, 0)
            col_stats[0] = torch.logaddexp(col_stats[0], part[0])
            col_stats[1] = torch.logaddexp(col_stats[1], part[1])
            col_stats[2] += part[2]
            col_stats[3] += part[3]
    return row_stats, col_stats


def _softmax_weights(strip: _Strip, stats: Tensor, d_stats: list[Tensor | None], dim: int) -> Tensor:
    """d loss / d logits of one side, whose statistics run along ``dim`` of the strip."""
    at = (strip.i, None) if dim == 0 else (None, slice(None))
    # an empty or wholly masked set weighs nothing: exp(-inf - 0), not exp(-inf + inf)
    lse, pos_lse = (x.masked_fill(x == -torch.inf, 0)[at] for x in stats[:2])
    d_lse, d_pos_lse, d_pos_sum = (0.0 if d is None else d[at] for d in d_stats)
    den = torch.where(strip.in_den, d_lse * (strip.logits - lse).exp(), 0)
    return den + torch.where(strip.in_pos, d_pos_lse * (strip.logits - pos_lse).exp() + d_pos_sum, 0)


def pair_stats_backward(
    problem: Problem,
    row_stats: Tensor,
    col_stats: Tensor,
    d_row_stats: list[Tensor | None],
    d_col_stats: list[Tensor | None],
    needs: Needs,
) -> Gradients:
    def weights(strip: _Strip) -> Tensor:
        w = _softmax_weights(strip, row_stats, d_row_stats, 0)
        return w + _softmax_weights(strip, col_stats, d_col_stats, 1) if col_stats.shape[1] else w

    return _apply(problem, weights, needs)


def pair_sum(problem: Problem) -> Tensor:
    rows, cols = _sides(problem)
    out = rows.x.new_empty(len(rows.x))
    for strip in _strips(problem, rows, cols):
        # softplus(l) = -logsigmoid(-l); torch's softplus turns linear above 20, short of float64
        negative = torch.where(strip.in_den, -logsigmoid(-strip.logits), 0)
        out[strip.i] = (negative - torch.where(strip.in_pos, logsigmoid(strip.logits), 0)).sum(1)
    return out


def pair_sum_backward(problem: Problem, d_sum: Tensor, needs: Needs) -> Gradients:
    def weights(strip: _Strip) -> Tensor:
        slope = torch.where(strip.in_den, strip.logits.sigmoid(), 0)
        slope = slope - torch.where(strip.in_pos, (-strip.logits).sigmoid(), 0)
        return d_sum[strip.i, None] * slope

    return _apply(problem, weights, needs)


def _apply(problem: Problem, weights: Callable[[_Strip], Tensor], needs: Needs) -> Gradients:
    """Gradients of sum_ij W_ij l_ij with W held constant, W made strip by strip."""
    rows, cols = _sides(problem)
    scale = problem.logit_scale.expand(len(rows.x))[:, None]
    d_rows, d_cols = torch.zeros_like(rows.x), torch.zeros_like(cols.x)
    d_row_bias, d_col_bias = rows.x.new_zeros(len(rows.x)), rows.x.new_zeros(len(cols.x))
    for strip in _strips(problem, rows, cols):
        w = weights(strip)
        d_rows[strip.i] = _product(w, cols.x)
        d_cols += _product(w.T, rows.x[strip.i] * scale[strip.i])
        d_row_bias[strip.i] = w.sum(1)
        d_col_bias += w.sum(0)
    d_scale = (d_rows * rows.x).sum(1)
    d_rows = d_rows * scale
    out = empty_gradients(problem, needs)
    if problem.cols is None:
        d_rows, d_row_bias = d_rows + d_cols, d_row_bias + d_col_bias
    if needs.rows:
        out = out._replace(rows=rows.gradient(d_rows, problem.rows.dtype), logit_scale=d_scale)
    if needs.cols and problem.cols is not None:
        out = out._replace(cols=cols.gradient(d_cols, problem.cols.dtype))
    if needs.bias:
        out = out._replace(row_bias=d_row_bias, col_bias=out.col_bias if problem.cols is None else d_col_bias)
    return out
