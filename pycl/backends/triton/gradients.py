# SPDX-License-Identifier: Apache-2.0
"""Sums over weighted points, on the host's side: gradients, by one of two sweeps, and weighted sums of values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycl.backends.triton import tiles
from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import cdiv, launch, next_power_of_2, recorded_architecture
from pycl.backends.triton.operands import NOTHING, Side, Sides, prepared, tile_for
from pycl.backends.triton.schedule import Plan, planned, plans, portions, proof, split
from pycl.core.problem import Gradients, Needs, Problem, empty_gradients
from pycl.triton_kernels.backward import own_gradient, store_tiles
from pycl.triton_kernels.finish import finish
from pycl.triton_kernels.interpreter import INTERPRETED
from pycl.triton_kernels.logit_gradient import SMALLEST, TOP, Slopes
from pycl.triton_kernels.logits import STATISTICS
from pycl.triton_kernels.tile_table import Tile

PARTIAL_GRADIENTS = 64 << 20  # bytes of float32 gradients that wait for their cast,
STRIP = 24 << 20  # of weights that wait for their product; where there is more memory, one part in STRIPS of it:
STRIPS = 512  # a strip costs two launches, and one more reading and writing of the other side's sums
MOST_RUNS = 16  # programs that share the columns of one block of rows


class _Sweep(NamedTuple):
    """What one direction of the backward knows: rows get gradients, columns stream."""

    sides: Sides
    row_slopes: Slopes
    col_slopes: Slopes
    rule: Any
    sets: tuple[int, int]
    shrink: Tensor | None
    normalize: bool

    def exchanged(self) -> _Sweep:
        return self._replace(sides=self.sides.exchanged(), row_slopes=self.col_slopes, col_slopes=self.row_slopes)


def gradients(problem: Problem, row_slopes: Slopes, col_slopes: Slopes, rule: Any, needs: Needs) -> Gradients:
    """All gradients that are needed; in a symmetric problem both slopes are the same."""
    sides, row_slopes, col_slopes, shrink = prepared(problem, row_slopes, col_slopes)
    symmetric, operand = problem.cols is None, sides.x.operand
    out = empty_gradients(problem, needs)
    sets = problem.denominator, problem.positives
    sweep = _Sweep(sides, row_slopes, col_slopes, rule, sets, shrink, problem.normalize)
    tile = tiles.pick("own", device_of(operand.device).architecture, operand.itemsize, operand.shape[1])
    if tile is None or sides.x.values is not operand:
        _by_strips(sweep, symmetric, needs, out)
    else:
        of_cols = () if symmetric else (out.cols, out.col_bias)
        both = any(t.numel() for t in of_cols) and (out.rows.numel() > 0 or out.row_bias.numel() > 0)
        row_plan, col_plan = plans(sides, tile, sets) if both else (None, None)
        _of_rows(sweep, tile, row_plan, out.rows, out.logit_scale, out.row_bias)
        if not symmetric:
            _of_rows(sweep.exchanged(), tile, col_plan, out.cols, out.cols.new_empty(0), out.col_bias)
    if symmetric:
        out.logit_scale.mul_(0.5)  # both roles of a pair were counted, in both of its places
    return out


def _of_rows(sweep: _Sweep, tile: Tile, known: Plan | None, d_z: Tensor, *d_vectors: Tensor) -> None:
    """Gradients of the rows, their scales and their biases; those that are empty were not asked for."""
    if not any(t.numel() for t in (d_z, *d_vectors)):
        return
    d = sweep.sides.x.z.shape[1]
    for plan, start, rows in planned(sweep.sides, tile, sweep.sets, known=known):
        for after, here in portions(rows, PARTIAL_GRADIENTS, 4 * d * tile.rows, tile.rows):
            _own_gradient(sweep, tile, plan, start + after, here, d_z, *d_vectors)


def _own_gradient(
    sweep: _Sweep, tile: Tile, plan: Plan, first: int, here: int, d_z: Tensor, *d_vectors: Tensor
) -> None:
    x, y, logit_scale, offset = sweep.sides
    d, n_blocks, blocks = x.z.shape[1], cdiv(y.n, tile.cols), cdiv(here, tile.rows)
    slots = tile.resident * device_of(x.z.device).multiprocessors
    run = cdiv(n_blocks, min(split(blocks, slots, MOST_RUNS), n_blocks))
    runs = cdiv(n_blocks, run)
    parts = x.reach.new_empty(runs, here, d)
    vector_parts = [x.reach.new_empty(runs, here) if v.numel() else None for v in d_vectors]
    launch(
        own_gradient,
        (blocks, runs),
        *sweep.sides.descriptors(tile),
        *(x.points, y.points, logit_scale, sweep.row_slopes, sweep.col_slopes),
        *(*plan[:3], sweep.shrink, parts, *vector_parts),
        *(x.n, y.n, d, plan.first, first, here, run, offset, *sweep.sets),
        RULE=sweep.rule.value,
        STAGES=tile.stages,
        **tile.options(),
    )
    if d_z.numel():
        _finish(parts, x, logit_scale, x.points.factor, sweep, d_z, first)
    for vector, of_vector in zip(d_vectors, vector_parts, strict=True):
        if of_vector is not None:
            torch.sum(of_vector, 0, out=vector[first : first + here])


def _finish(
    parts: Tensor, side: Side, logit_scale: Tensor | None, factor: Tensor | None, sweep: _Sweep, out: Tensor, first: int
) -> None:
    """Sums of weighted embeddings [parts, rows, d] into the gradient of ``side.z`` from row ``first`` on."""
    n_parts, here, d = parts.shape
    z = (side.z, *side.z.stride()) if sweep.normalize else (None, 0, 0)
    launch(
        finish,
        (cdiv(here, 16),),
        *(parts, parts.stride(0), n_parts, *z, logit_scale, factor, sweep.shrink),
        *(out, first, here, side.n, d),
        NORMALIZE=sweep.normalize,
        ROWS=16,
        BLOCK=min(next_power_of_2(d), 256),
        num_warps=8,
    )


class _Strip(NamedTuple):
    """The weights of some rows; the next strip takes their place in memory."""

    here: slice
    weights: Tensor  # [rows, n] in the dtype of the values
    d_scale: Tensor | None  # [column blocks, rows]: sums of w_ij <x_i, y_j>,
    d_row_bias: Tensor | None  # of w_ij,
    d_col_bias: Tensor | None  # [row blocks, n]: and of these over rows


def _strips(sweep: _Sweep, of_scale: bool = False, of_rows: bool = False, of_cols: bool = False) -> Iterator[_Strip]:
    """All weights, a strip at a time, and what sums of them are asked for."""
    x, y, logit_scale, offset = sweep.sides
    tile = tile_for("store", sweep.sides)
    proven = proof(sweep.sides, tile, sweep.sets)
    dtype, width = x.values.dtype, cdiv(y.n, 8) * 8
    budget = max(STRIP, device_of(x.z.device).memory // STRIPS)
    strips = portions(x.n, budget, width * dtype.itemsize * tile.rows, tile.rows)
    weights = torch.empty(strips[0][1], width, dtype=dtype, device=x.z.device)[:, : y.n]
    new, n_blocks = x.reach.new_empty, cdiv(y.n, tile.cols)
    for first, here in strips:
        blocks = cdiv(here, tile.rows)
        d_scale = new(n_blocks, here) if of_scale else None
        d_row_bias = new(n_blocks, here) if of_rows else None
        d_col_bias = new(blocks, y.n) if of_cols else None
        launch(
            store_tiles,
            (blocks * n_blocks,),
            *sweep.sides.descriptors(tile),
            *(x.points, y.points, logit_scale, sweep.row_slopes, sweep.col_slopes, proven, sweep.shrink),
            *(weights, weights.stride(0), d_scale, d_row_bias, d_col_bias),
            *(x.n, y.n, x.operand.shape[1], first, here, offset, *sweep.sets),
            RULE=sweep.rule.value,
            RESIDENT=tile.holds(x.operand.shape[1]),
            TALL=8,
            **tile.options(),
        )
        yield _Strip(slice(first, first + here), weights[:here], d_scale, d_row_bias, d_col_bias)


def _by_strips(sweep: _Sweep, symmetric: bool, needs: Needs, out: Gradients) -> None:
    """All gradients, a strip of weights at a time; the products with it are the library's."""
    x, y, logit_scale, _ = sweep.sides
    of_cols = x.reach.new_empty(1, y.n, x.z.shape[1]) if needs.cols and not symmetric else None
    out.col_bias.zero_()
    for here, w, d_scale, d_row_bias, d_col_bias in _strips(
        sweep, needs.rows, needs.bias, needs.bias and not symmetric
    ):
        if needs.rows:
            _finish(_product(w, y.values)[None], x, logit_scale, None, sweep, out.rows, here.start)
        if of_cols is not None:
            _product(w.T, x.values[here], into=of_cols[0], add=here.start > 0)
        for vector, parts in ((out.logit_scale, d_scale), (out.row_bias, d_row_bias)):
            if parts is not None:
                torch.sum(parts, 0, out=vector[here])
        if d_col_bias is not None:
            out.col_bias.add_(d_col_bias.sum(0))
    if of_cols is not None:
        _finish(of_cols, y, logit_scale, None, sweep, out.cols, 0)


def pair_weighted_sum(problem: Problem, values: Tensor) -> Tensor:
    """``sum_j exp(l_ij) v_j`` [m, dv] over the denominator set, of logits <= 0 up to rounding, one scale for all rows.

    Weights are the derivatives of sums of exponentials, rounded as a gradient's are; values keep their digits.
    """
    ones = torch.ones(len(problem.rows), device=problem.rows.device)
    sides, row_slopes, col_slopes, shrink = prepared(problem, Slopes(None, ones, None, None), NOTHING)
    out = sides.x.reach.new_empty(len(ones), values.shape[1])
    sweep = _Sweep(sides, row_slopes, col_slopes, STATISTICS, (problem.denominator, 0), shrink, False)
    parts, unit = _parts_of(values, sides.x.values.dtype)
    for here, w, *_ in _strips(sweep):
        torch.sum(_product(w, parts).unflatten(1, (-1, values.shape[1])), 1, out=out[here])
    for factor in (shrink, unit):
        if factor is not None:
            out /= factor
    return out


def _parts_of(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Parts in the weights' dtype, [n, dv] or [n, 2 dv] with a sum of the values times a unit, and the unit."""
    if dtype in (values.dtype, torch.float32):
        return values.to(dtype), None
    wide, unit = values.float(), None
    if dtype == torch.float16:  # to the top of its range, as the weights are; NaN and infinity stay what they are
        peak = wide.abs().amax()
        unit = torch.exp2(TOP.value - torch.log2(peak.clamp_min(SMALLEST.value)).ceil())
        unit = torch.where(peak.isfinite(), unit, 1.0)
        wide = wide * unit
    high = wide.to(dtype)
    if values.dtype == torch.bfloat16:  # has no more digits
        return high, unit
    return torch.cat([high, (wide - high.float()).to(dtype)], 1), unit


def _product(a: Tensor, b: Tensor, into: Tensor | None = None, add: bool = False) -> Tensor:
    """a b in float32, or added to what ``into`` holds."""
    into = torch.empty(a.shape[0], b.shape[1], device=a.device) if into is None else into
    if recorded_architecture() is not None:  # tensors without data; out_dtype is unknown to those of torch 2.11
        return into
    with torch.autocast("cpu" if INTERPRETED else "cuda", enabled=False):  # dtypes were chosen where inputs were made
        if a.dtype == torch.float32 or INTERPRETED:  # no product of halves with a float32 result on the CPU
            return torch.addmm(into, a.float(), b.float(), beta=int(add), out=into)
        return torch.addmm(into, a, b, out_dtype=torch.float32, beta=int(add), out=into)
