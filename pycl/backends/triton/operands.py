# SPDX-License-Identifier: Apache-2.0
"""A problem as the kernels take it: both sides prepared, descriptors of their operands, the device they are for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pycl.backends.triton import tiles
from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import cdiv, launch, next_power_of_2
from pycl.core import precision
from pycl.core.problem import Problem
from pycl.triton_kernels import logit_gradient, pair_classes
from pycl.triton_kernels.logit_gradient import Slopes, Tables
from pycl.triton_kernels.pair_classes import Points
from pycl.triton_kernels.prepare import Given, prepare
from pycl.triton_kernels.tile_table import Tile

GROUP: int = pair_classes.GROUP.value
WHOLE: int = logit_gradient.WHOLE.value
TERMS: int = logit_gradient.TERMS.value
NOTHING = Slopes(None, None, None, None)
NO_SELF: int = pair_classes.NOWHERE.value


class Side(NamedTuple):
    z: Tensor  # as given
    operand: Tensor  # [n, k]: what tiles multiply, k = d or 3 d
    values: Tensor  # [n, d]: what gradients are summed from
    points: Points
    reach: Tensor  # float32 [2, groups]: the largest norm times factor, the largest bias

    @property
    def n(self) -> int:
        return self.z.shape[0]

    def descriptor(self, rows: int, depth: int) -> TensorDescriptor:
        return TensorDescriptor(self.operand, list(self.operand.shape), list(self.operand.stride()), [rows, depth])


class Sides(NamedTuple):
    """Rows and columns, the scale they share, and where a row meets itself."""

    x: Side
    y: Side
    logit_scale: Tensor | None  # one element; None where every row has its own, in x.points.factor
    offset: int

    def descriptors(self, tile: Tile) -> tuple[TensorDescriptor, TensorDescriptor, TensorDescriptor]:
        """Of a block of rows, of a block of columns, of a piece of such a block."""
        x, y, depth = self.x, self.y, tile.depth
        return x.descriptor(tile.rows, depth), y.descriptor(tile.cols, depth), y.descriptor(tile.piece, depth)

    def exchanged(self) -> Sides:
        return Sides(self.y, self.x, self.logit_scale, NO_SELF if self.offset == NO_SELF else -self.offset)


def sides_of(problem: Problem) -> Sides:
    """Both sides, prepared."""
    return prepared(problem, NOTHING, NOTHING)[0]


def prepared(problem: Problem, row_slopes: Slopes, col_slopes: Slopes) -> tuple[Sides, Slopes, Slopes, Tensor | None]:
    """Both sides, both slopes with tables in place of their statistics, and what weights in float16 are shrunk by.

    A symmetric problem's sides are one and the same where its operand is, and its slopes.
    """
    p = problem
    scalar = p.logit_scale.dim() == 0
    form = Form(*_precision(p.rows.dtype, p.normalize), p.normalize)
    factor = None if scalar else p.logit_scale
    x = _new_side(p.rows, (p.row_ids, p.row_views), factor, p.row_bias, form)
    if p.cols is not None:
        y = _new_side(p.cols, (p.col_ids, p.col_views), None, p.col_bias, form)
    else:
        y = x if form.planes == 1 else _new_side(p.rows, (p.row_ids, p.row_views), None, p.row_bias, form)
    tables = _new_tables(row_slopes, col_slopes, x, y)
    _prepare(x, None if y is x else y, form, row_slopes, col_slopes, tables)
    meets_nothing = p.offset is None or abs(p.offset) >= NO_SELF
    offset = NO_SELF if meets_nothing or p.offset is None else p.offset
    rows = row_slopes._replace(stats=tables.rows)
    cols = rows if col_slopes is row_slopes else col_slopes._replace(stats=tables.cols)
    return Sides(x, y, p.logit_scale if scalar else None, offset), rows, cols, tables.shrink


def _new_tables(row_slopes: Slopes, col_slopes: Slopes, x: Side, y: Side) -> Tables:
    """Memory for them; ``shrink`` where weights are float16, to give them the best of its range."""

    def table(slopes: Slopes, side: Side) -> Tensor | None:
        if slopes == NOTHING:
            return None
        return side.reach.new_empty(TERMS, cdiv(side.n, WHOLE) * WHOLE)

    cols = None if col_slopes is row_slopes else table(col_slopes, y)
    shrunk = row_slopes != NOTHING and x.operand.dtype == torch.float16
    return Tables(table(row_slopes, x), cols, x.reach.new_empty(1) if shrunk else None)


class Form(NamedTuple):
    """Of operands: their dtype, and how many products of it make one of the embeddings'."""

    dtype: torch.dtype
    planes: int
    normalize: bool


def _precision(dtype: torch.dtype, normalize: bool) -> tuple[torch.dtype, int]:
    """The dtype of the operands and the number of products that make one: for float32 what torch is set to.

    "high" is three products of bfloat16 parts, not tf32: 16 bits instead of 10, and the tensor cores cannot read tf32
    operands transposed. Unit vectors need no range: as float16 they keep three bits more than as bfloat16.
    """
    digits = precision.of_cuda() if dtype == torch.float32 else "medium"
    if digits == "highest":
        return torch.float32, 1
    if digits == "high":
        return torch.bfloat16, 3
    return torch.float16 if normalize else torch.bfloat16 if dtype == torch.float32 else dtype, 1


def _new_side(
    z: Tensor, labels: tuple[Tensor | None, Tensor | None], factor: Tensor | None, bias: Tensor | None, form: Form
) -> Side:
    """With memory for what ``prepare`` makes of it; operand and values are the embeddings where these are fit to be."""
    n, d = z.shape
    groups = cdiv(n, GROUP)
    ranges = torch.empty(4, groups, dtype=torch.int64, device=z.device)
    reach = torch.empty(2, groups, dtype=torch.float32, device=z.device)
    as_given = not form.normalize and form.planes == 1 and form.dtype == z.dtype and _describable(z)
    operand = z if as_given else _aligned(n, form.planes * d, form.dtype, z.device)
    # gradients are sums of the embeddings in the weights' dtype: of all their digits where these are split
    values = operand if form.planes == 1 else _aligned(n, d, torch.float32, z.device) if form.normalize else z
    return Side(z, operand, values, Points(*labels, ranges, factor, bias), reach)


def _prepare(x: Side, y: Side | None, form: Form, row_slopes: Slopes, col_slopes: Slopes, tables: Tables) -> None:
    given = [_given(x), Given(*[None] * 11) if y is None else _given(y)]
    strides = [next((t.stride(0) for t in made if t is not None), 0) for made in zip(*map(_made, (x, y)), strict=True)]
    groups = cdiv(x.n, GROUP) + (0 if y is None else cdiv(y.n, GROUP))
    blocks = max((t.shape[1] // WHOLE for t in tables[:2] if t is not None), default=0)
    launch(
        prepare,
        (groups + blocks,),
        *(*given, row_slopes, col_slopes, tables, *strides, x.n, 0 if y is None else y.n, x.z.shape[1]),
        NORMALIZE=form.normalize,
        PLANES=form.planes,
        BLOCK=min(next_power_of_2(x.z.shape[1]), 256),
        num_warps=4 if form.planes == 1 else 8,  # registers for both halves
    )


def _made(side: Side | None) -> tuple[Tensor | None, Tensor | None]:
    """The operand and the values where they are not the embeddings themselves, and values that are not the operand."""
    if side is None:
        return None, None
    operand, values = side.operand, side.values
    return None if operand is side.z else operand, None if values is side.z or values is operand else values


def _given(side: Side) -> Given:
    ids, views, ranges, factor, bias = side.points
    return Given(side.z, *side.z.stride(), ids, views, factor, bias, *_made(side), ranges, side.reach)


def _aligned(n: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised [n, d] whose rows start at multiples of 16 bytes."""
    step = 16 // dtype.itemsize
    return torch.empty(n, cdiv(d, step) * step, dtype=dtype, device=device)[:, :d]


def _describable(z: Tensor) -> bool:
    """Whether a tensor descriptor can point at the tensor itself."""
    step, unit = z.stride()
    aligned = (step * z.itemsize) % 16 == 0 and z.data_ptr() % 16 == 0
    return unit == 1 and step >= z.shape[1] and aligned


def tile_for(kernel: str, sides: Sides) -> Tile:
    operand = sides.x.operand
    found = tiles.pick(kernel, device_of(operand.device).architecture, operand.itemsize, operand.shape[1])
    assert found is not None, f"every table has a tile for {kernel}"
    return found
