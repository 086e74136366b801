# SPDX-License-Identifier: Apache-2.0
"""Sums over weighted points, on the host's side: gradients, by one of two sweeps, and weighted sums of values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pycl.backends import reference
from pycl.backends.triton import tiles
from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import cdiv, launch, next_power_of_2, recorded_architecture
from pycl.backends.triton.modifier_gradients import add_gradients
from pycl.backends.triton.operands import NO_EMBEDDINGS, NO_GRAD, Operands, Side, prepared, tile_for, with_one_scale
from pycl.backends.triton.schedule import (
    MaskedRows,
    bound_alone,
    masked_rows,
    masks_of_both_sides,
    num_splits,
    row_chunks,
)
from pycl.core.modifiers import kinds
from pycl.core.problem import Gradients, Needs, Problem, empty_gradients
from pycl.triton_kernels.backward import RowGradients, Strip, backward_dx_kernel, write_weights_kernel
from pycl.triton_kernels.finish import finish_gradient_kernel
from pycl.triton_kernels.interpreter import INTERPRETED
from pycl.triton_kernels.logit_gradient import FP16_TOP_EXPONENT, SMALLEST, GradStats
from pycl.triton_kernels.logits import STATISTICS
from pycl.triton_kernels.tile_table import TileConfig

PARTIAL_GRADIENTS = 64 << 20  # bytes of float32 gradients that wait for their cast,
STRIP = 24 << 20  # of weights that wait for their product; where there is more memory, one part in STRIPS of it:
STRIPS = 512  # a strip costs two launches, and one more reading and writing of the other side's sums
MOST_MODIFIERS = 2  # with a gradient in registers: five of them spill 936 bytes beside one of 256 features
COUNTED = 128  # features beside a count of shared labels: with 256 Triton 3.6.0 spills 712 bytes
MOST_SPLITS = 16  # programs that share the columns of one block of rows


class _Sweep(NamedTuple):
    """What one direction of the backward knows: rows get gradients, columns stream."""

    operands: Operands
    row_grad_stats: GradStats
    col_grad_stats: GradStats
    loss_scale: Tensor | None
    rule: Any
    normalize: bool

    def transposed(self) -> _Sweep:
        return self._replace(
            operands=self.operands.transposed(),
            row_grad_stats=self.col_grad_stats,
            col_grad_stats=self.row_grad_stats,
        )


def gradients(
    problem: Problem, row_grad_stats: GradStats, col_grad_stats: GradStats, rule: Any, needs: Needs
) -> Gradients:
    """All gradients that are needed; in a symmetric problem both sides' statistics are the same.

    Those of modifiers come from stored weights. In these a row's own scale is a factor: there the rows take it first.
    The gradients of a table's entries [a, b] and [b, a] are not the same: there a pair counts in one of its roles.
    """
    symmetric, both_roles = problem.cols is None, col_grad_stats is row_grad_stats
    changes = kinds(problem.modifiers)
    roles_apart = both_roles and "label_table" in changes
    if needs.modifiers and (problem.logit_scale.dim() or roles_apart):
        found = gradients(problem, row_grad_stats, col_grad_stats, rule, needs._replace(modifiers=False))
        alone = Needs(rows=False, cols=False, bias=False, modifiers=True)
        cols = NO_GRAD if roles_apart else col_grad_stats
        of_modifiers = gradients(with_one_scale(problem), row_grad_stats, cols, rule, alone).modifiers
        return found._replace(modifiers=of_modifiers)
    sweep = _Sweep(*prepared(problem, row_grad_stats, col_grad_stats), rule, problem.normalize)
    x = sweep.operands.x
    out = empty_gradients(problem, needs)
    arch = device_of(x.operand.device).architecture
    tile = tiles.pick("backward_dx", arch, x.operand.itemsize, x.operand.shape[1])
    crowded = len(changes) > MOST_MODIFIERS or ("agreement" in changes and x.operand.shape[1] > COUNTED)
    if tile is None or x.values is not x.operand or needs.modifiers or crowded:
        _by_strips(problem, sweep, needs, out)
    else:
        tile = tile.with_modifiers() if problem.modifiers else tile
        of_cols = () if symmetric else (out.cols, out.col_bias)
        both_sides = any(t.numel() for t in of_cols) and (out.rows.numel() > 0 or out.row_bias.numel() > 0)
        of_rows, of_cols_too = masks_of_both_sides(sweep.operands, tile) if both_sides else (None, None)
        _of_rows(sweep, tile, of_rows, out.rows, out.logit_scale, out.row_bias)
        if not symmetric:
            _of_rows(sweep.transposed(), tile, of_cols_too, out.cols, out.cols.new_empty(0), out.col_bias)
    if both_roles:
        for doubled in (out.logit_scale, out.modifiers):  # both roles of a pair were counted, in both of its places
            doubled.mul_(0.5)
    return out


def _of_rows(
    sweep: _Sweep, tile: TileConfig, known: MaskedRows | None, d_z: Tensor, d_scale: Tensor, d_bias: Tensor
) -> None:
    """Gradients of the rows, their scales and their biases; those that are empty were not asked for."""
    if not any(t.numel() for t in (d_z, d_scale, d_bias)):
        return
    d = sweep.operands.x.z.shape[1]
    for masked in masked_rows(sweep.operands, tile, known=known):
        for after, here in row_chunks(masked.rows, PARTIAL_GRADIENTS, 4 * d * tile.rows, tile.rows):
            _backward_dx(sweep, tile, masked, masked.first + after, here, d_z, d_scale, d_bias)


def _backward_dx(
    sweep: _Sweep, tile: TileConfig, masked: MaskedRows, first: int, here: int, d_z: Tensor, *d_vectors: Tensor
) -> None:
    x, y, logit_scale = sweep.operands[:3]
    d, n_blocks, blocks = x.z.shape[1], cdiv(y.n, tile.cols), cdiv(here, tile.rows)
    slots = tile.occupancy * device_of(x.z.device).num_sms
    blocks_per_split = cdiv(n_blocks, min(num_splits(blocks, slots, MOST_SPLITS), n_blocks))
    splits = cdiv(n_blocks, blocks_per_split)
    partials = RowGradients(x.new(splits, here, d), *(x.new(splits, here) if v.numel() else None for v in d_vectors))
    launch(
        backward_dx_kernel,
        (blocks, splits),
        *sweep.operands.descriptors(tile),
        *(x.points, y.points, logit_scale, masked.mask, sweep.operands.modifiers.data),
        *(sweep.row_grad_stats, sweep.col_grad_stats, sweep.loss_scale, partials),
        *(x.n, y.n, d, masked.start, first, here, blocks_per_split, *sweep.operands.offset_and_sets),
        RULE=sweep.rule.value,
        STAGES=tile.stages,
        MODIFIERS=sweep.operands.modifiers.constant,
        **tile.options(),
    )
    if d_z.numel():
        _finish(partials.z, x, logit_scale, x.points.factor, sweep, d_z, first)
    for vector, of_vector in zip(d_vectors, partials[1:], strict=True):
        if of_vector is not None:
            torch.sum(of_vector, 0, out=vector[first : first + here])


def _finish(
    partials: Tensor,
    side: Side,
    logit_scale: Tensor | None,
    factor: Tensor | None,
    sweep: _Sweep,
    out: Tensor,
    first: int,
) -> None:
    """Sums of weighted embeddings [partials, rows, d] into the gradient of ``side.z`` from row ``first`` on."""
    n_partials, here, d = partials.shape
    embeddings = side.embeddings if sweep.normalize else NO_EMBEDDINGS
    launch(
        finish_gradient_kernel,
        (cdiv(here, 16),),
        *(partials, partials.stride(0), n_partials, embeddings, logit_scale, factor, sweep.loss_scale),
        *(out, first, here, side.n, d),
        NORMALIZE=sweep.normalize,
        ROWS=16,
        BLOCK=min(next_power_of_2(d), 256),
        num_warps=8,
    )


def _strips(
    sweep: _Sweep, of_scale: bool = False, of_rows: bool = False, of_cols: bool = False
) -> Iterator[tuple[slice, Strip]]:
    """All weights, a strip of rows at a time in the same memory, and the sums that are asked for."""
    x, y, logit_scale = sweep.operands[:3]
    tile = tile_for("write_weights", sweep.operands)
    mask = bound_alone(sweep.operands, tile)
    dtype, width = x.values.dtype, cdiv(y.n, 8) * 8
    budget = max(STRIP, device_of(x.z.device).memory // STRIPS)
    strips = row_chunks(x.n, budget, width * dtype.itemsize * tile.rows, tile.rows)
    weights = torch.empty(strips[0][1], width, dtype=dtype, device=x.z.device)[:, : y.n]
    n_blocks = cdiv(y.n, tile.cols)
    for first, here in strips:
        blocks = cdiv(here, tile.rows)
        out = Strip(
            weights,
            x.new(n_blocks, here) if of_scale else None,
            x.new(n_blocks, here) if of_rows else None,
            x.new(blocks, y.n) if of_cols else None,
        )
        launch(
            write_weights_kernel,
            (blocks * n_blocks,),
            *sweep.operands.descriptors(tile),
            *(x.points, y.points, logit_scale, mask, sweep.operands.modifiers.data),
            *(sweep.row_grad_stats, sweep.col_grad_stats, sweep.loss_scale, out, weights.stride(0)),
            *(x.n, y.n, x.operand.shape[1], first, here, *sweep.operands.offset_and_sets),
            RULE=sweep.rule.value,
            ALL_FEATURES=tile.holds(x.operand.shape[1]),
            GROUP_M=8,
            MODIFIERS=sweep.operands.modifiers.constant,
            **tile.options(),
        )
        yield slice(first, first + here), out._replace(weights=weights[:here])


def _by_strips(problem: Problem, sweep: _Sweep, needs: Needs, out: Gradients) -> None:
    """All gradients, a strip of weights at a time; the products with it are the library's."""
    (x, y, logit_scale), symmetric, data = sweep.operands[:3], problem.cols is None, sweep.operands.modifiers.data
    of_cols = x.new(1, y.n, x.z.shape[1]) if needs.cols and not symmetric else None
    out.col_bias.zero_()
    out.modifiers.zero_()
    for here, strip in _strips(sweep, needs.rows, needs.bias, needs.bias and not symmetric):
        if needs.rows:
            _finish(_product(strip.weights, y.values)[None], x, logit_scale, None, sweep, out.rows, here.start)
        if of_cols is not None:
            _product(strip.weights.T, x.values[here], into=of_cols[0], add=here.start > 0)
        for vector, partials in ((out.logit_scale, strip.scale), (out.row_bias, strip.row_bias)):
            if partials is not None:
                torch.sum(partials, 0, out=vector[here])
        if strip.col_bias is not None:
            out.col_bias.add_(strip.col_bias.sum(0))
        if needs.modifiers:
            add_gradients(problem, data, strip.weights, sweep.loss_scale, here.start, out)
    if of_cols is not None:
        _finish(of_cols, y, logit_scale, None, sweep, out.cols, 0)


def weighted_sum(problem: Problem, values: Tensor) -> Tensor:
    """``sum_j exp(l_ij) v_j`` [m, dv] over the first pair set, of logits <= 0 up to rounding.

    Weights are the derivatives of sums of exponentials, rounded as a gradient's are; values keep their digits. All rows
    have one scale: in the strips a row's own would be a factor of its weights.
    """
    sweep = _exponentials(problem)
    x = sweep.operands.x
    out = x.new(x.n, values.shape[1])
    terms, values_scale = _terms_of(values, x.values.dtype)
    for here, strip in _strips(sweep):
        torch.sum(_product(strip.weights, terms).unflatten(1, (-1, values.shape[1])), 1, out=out[here])
    return _unscaled(out, sweep.loss_scale, values_scale)


def pair_average_backward(
    problem: Problem, values: Tensor, d_out: Tensor, along: Tensor, of_values: bool, needs: Needs
) -> tuple[Tensor, ...]:
    """The values' gradient by the strips of the forward; all others in plain torch.

    A logit's gradient is the weight times a difference that a strip's kernel does not have: its second product.
    """
    if problem.logit_scale.dim():
        return reference.pair_average_backward(problem, values, d_out, along, of_values, needs)
    d_values = _values_gradient(problem, d_out) if of_values else d_out.new_empty(0)
    if not any(needs):
        return d_values, *empty_gradients(problem, needs)
    _, *others = reference.pair_average_backward(problem, values, d_out, along, False, needs)
    return d_values, *others


def _values_gradient(problem: Problem, d_out: Tensor) -> Tensor:
    """``sum_i exp(l_ij) g_i`` [n, dv]."""
    sweep = _exponentials(problem)
    terms, terms_scale = _terms_of(d_out, sweep.operands.x.values.dtype)
    sums = sweep.operands.x.new(sweep.operands.y.n, terms.shape[1])
    for here, strip in _strips(sweep):
        _product(strip.weights.T, terms[here], into=sums, add=here.start > 0)
    return _unscaled(sums.unflatten(1, (-1, d_out.shape[1])).sum(1), sweep.loss_scale, terms_scale)


def _exponentials(problem: Problem) -> _Sweep:
    ones = torch.ones(len(problem.rows), device=problem.rows.device)
    problem = problem._replace(positives=0)
    return _Sweep(*prepared(problem, GradStats(None, ones, None, None), NO_GRAD), STATISTICS, False)


def _unscaled(sums: Tensor, *factors: Tensor | None) -> Tensor:
    for factor in factors:
        if factor is not None:
            sums /= factor
    return sums


def _terms_of(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The values times a scale as sums of terms in the weights' dtype, [n, dv] or [n, 2 dv], and the scale."""
    if dtype in (values.dtype, torch.float32):
        return values.to(dtype), None
    wide, scale = values.float(), None
    if dtype == torch.float16:  # to the top of its range, as the weights are; NaN and infinity stay what they are
        peak = wide.abs().amax()
        scale = torch.exp2(FP16_TOP_EXPONENT.value - torch.log2(peak.clamp_min(SMALLEST.value)).ceil())
        scale = torch.where(peak.isfinite(), scale, 1.0)
        wide = wide * scale
    high = wide.to(dtype)
    if values.dtype == torch.bfloat16:  # has no more digits
        return high, scale
    return torch.cat([high, (wide - high.float()).to(dtype)], 1), scale


def _product(a: Tensor, b: Tensor, into: Tensor | None = None, add: bool = False) -> Tensor:
    """a b in float32, or added to what ``into`` holds."""
    into = torch.empty(a.shape[0], b.shape[1], device=a.device) if into is None else into
    if recorded_architecture() is not None:  # tensors without data; out_dtype is unknown to those of torch 2.11
        return into
    with torch.autocast("cpu" if INTERPRETED else "cuda", enabled=False):  # dtypes were chosen where inputs were made
        if a.dtype == torch.float32 or INTERPRETED:  # no product of halves with a float32 result on the CPU
            return torch.addmm(into, a.float(), b.float(), beta=int(add), out=into)
        return torch.addmm(into, a, b, out_dtype=torch.float32, beta=int(add), out=into)
