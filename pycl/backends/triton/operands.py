# SPDX-License-Identifier: Apache-2.0
"""A problem as the kernels take it: both sides prepared, and descriptors of what tiles multiply."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pycl.backends.reference import _sides
from pycl.backends.triton import tiles
from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import cdiv, launch, next_power_of_2
from pycl.backends.triton.modifiers import Encoded, encoded
from pycl.core import precision
from pycl.core.problem import Problem
from pycl.triton_kernels import logit_gradient, pair_classes
from pycl.triton_kernels.logit_gradient import GradStats, WeightTables
from pycl.triton_kernels.pair_classes import PointAttributes
from pycl.triton_kernels.prepare import Embeddings, SideInputs, prepare_kernel
from pycl.triton_kernels.tile_table import TileConfig

LABEL_GROUP: int = pair_classes.LABEL_GROUP.value
NO_SELF: int = pair_classes.NO_SELF.value
TABLE_BLOCK: int = logit_gradient.TABLE_BLOCK.value
TABLE_ROWS: int = logit_gradient.TABLE_ROWS.value
NO_GRAD = GradStats(None, None, None, None)
NO_EMBEDDINGS = Embeddings(None, None, None)
NO_SIDE = SideInputs(NO_EMBEDDINGS, None, None, None, None, None, None, None, None)


class Side(NamedTuple):
    z: Tensor  # as given
    operand: Tensor  # [n, k]: what tiles multiply, k = d or 3 d
    values: Tensor  # [n, d]: what gradients are summed from
    points: PointAttributes
    bounds: Tensor  # float32 [2, groups]: the largest norm times factor, the largest bias

    @property
    def n(self) -> int:
        return self.z.shape[0]

    @property
    def embeddings(self) -> Embeddings:
        return Embeddings(self.z, self.z.stride(0), self.z.stride(1))

    def descriptor(self, rows: int, depth: int) -> TensorDescriptor:
        return TensorDescriptor(self.operand, list(self.operand.shape), list(self.operand.stride()), [rows, depth])

    def new(self, *shape: int) -> Tensor:
        """Uninitialised float32 where the side is."""
        return self.bounds.new_empty(shape)


class Operands(NamedTuple):
    """Rows and columns, the scale they share, where a row meets itself, and which pairs count."""

    x: Side
    y: Side
    logit_scale: Tensor | None  # one element; None where every row has its own, in x.points.factor
    offset: int
    pairs: int
    positives: int
    modifiers: Encoded

    @property
    def offset_and_sets(self) -> tuple[int, int, int]:
        return self.offset, self.pairs, self.positives

    def descriptors(self, tile: TileConfig) -> tuple[TensorDescriptor, TensorDescriptor, TensorDescriptor]:
        """Of a block of rows, of a block of columns, of a piece of such a block."""
        x, y, depth = self.x, self.y, tile.depth
        return x.descriptor(tile.rows, depth), y.descriptor(tile.cols, depth), y.descriptor(tile.piece, depth)

    def transposed(self) -> Operands:
        offset = NO_SELF if self.offset == NO_SELF else -self.offset
        modifiers = self.modifiers.transposed()
        return Operands(self.y, self.x, self.logit_scale, offset, self.pairs, self.positives, modifiers)


class Prepared(NamedTuple):
    operands: Operands
    row_grad_stats: GradStats  # with tables in place of their statistics
    col_grad_stats: GradStats
    loss_scale: Tensor | None  # what weights in float16 are multiplied by


def operands_of(problem: Problem) -> Operands:
    return prepared(problem, NO_GRAD, NO_GRAD).operands


def prepared(problem: Problem, row_grad_stats: GradStats, col_grad_stats: GradStats) -> Prepared:
    """A symmetric problem's sides are one and the same where its operand is, and its statistics."""
    # kernels number the points of one view by themselves; for instances of several views they would have to divide
    p = problem.with_labels() if problem.n_views > 1 else problem
    scalar = p.logit_scale.dim() == 0
    form = OperandFormat(*_precision(p.rows.dtype, p.normalize), p.normalize)
    factor = None if scalar else p.logit_scale
    x = _new_side(p.rows, (p.row_ids, p.row_views), factor, p.row_bias, form)
    if p.cols is not None:
        y = _new_side(p.cols, (p.col_ids, p.col_views), None, p.col_bias, form)
    else:
        y = x if form.planes == 1 else _new_side(p.rows, (p.row_ids, p.row_views), None, p.row_bias, form)
    tables = _new_tables(row_grad_stats, col_grad_stats, x, y)
    _prepare(x, None if y is x else y, form, row_grad_stats, col_grad_stats, tables)
    meets_nothing = p.offset is None or abs(p.offset) >= NO_SELF
    offset = NO_SELF if meets_nothing or p.offset is None else p.offset
    rows = row_grad_stats._replace(stats=tables.rows)
    cols = rows if col_grad_stats is row_grad_stats else col_grad_stats._replace(stats=tables.cols)
    operands = Operands(x, y, p.logit_scale if scalar else None, offset, p.pairs, p.positives, encoded(p))
    return Prepared(operands, rows, cols, tables.loss_scale)


def with_one_scale(problem: Problem) -> Problem:
    """The same logits with scales of rows in the rows themselves, in float32."""
    if problem.logit_scale.dim() == 0:
        return problem
    rows, cols = (side.x for side in _sides(problem))
    scale = problem.logit_scale
    return problem._replace(
        rows=rows * scale[:, None], cols=cols, logit_scale=torch.ones_like(scale[0]), normalize=False
    )


def _new_tables(row_grad_stats: GradStats, col_grad_stats: GradStats, x: Side, y: Side) -> WeightTables:
    """Memory for them; a loss scale where weights are float16, to give them the best of its range."""

    def table(grad_stats: GradStats, side: Side) -> Tensor | None:
        return None if grad_stats == NO_GRAD else side.new(TABLE_ROWS, cdiv(side.n, TABLE_BLOCK) * TABLE_BLOCK)

    cols = None if col_grad_stats is row_grad_stats else table(col_grad_stats, y)
    scaled = row_grad_stats != NO_GRAD and x.operand.dtype == torch.float16
    return WeightTables(table(row_grad_stats, x), cols, x.new(1) if scaled else None)


class OperandFormat(NamedTuple):
    """The operands' dtype, and how many products of it make one of the embeddings'."""

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
    z: Tensor,
    labels: tuple[Tensor | None, Tensor | None],
    factor: Tensor | None,
    bias: Tensor | None,
    form: OperandFormat,
) -> Side:
    """With memory for what ``prepare_kernel`` makes; operand and values are the embeddings where they can be."""
    n, d = z.shape
    groups = cdiv(n, LABEL_GROUP)
    ranges = torch.empty(4, groups, dtype=torch.int64, device=z.device)
    bounds = torch.empty(2, groups, dtype=torch.float32, device=z.device)
    as_given = not form.normalize and form.planes == 1 and form.dtype == z.dtype and _describable(z)
    operand = z if as_given else _aligned(n, form.planes * d, form.dtype, z.device)
    # gradients are sums of the embeddings in the weights' dtype: of all their digits where these are split
    values = operand if form.planes == 1 else _aligned(n, d, torch.float32, z.device) if form.normalize else z
    return Side(z, operand, values, PointAttributes(*labels, ranges, factor, bias), bounds)


def _prepare(
    x: Side,
    y: Side | None,
    form: OperandFormat,
    row_grad_stats: GradStats,
    col_grad_stats: GradStats,
    tables: WeightTables,
) -> None:
    rows, cols = _inputs(x), NO_SIDE if y is None else _inputs(y)
    strides = [_stride(rows.operand, cols.operand), _stride(rows.exact, cols.exact)]
    groups = cdiv(x.n, LABEL_GROUP) + (0 if y is None else cdiv(y.n, LABEL_GROUP))
    blocks = max((t.shape[1] // TABLE_BLOCK for t in tables[:2] if t is not None), default=0)
    launch(
        prepare_kernel,
        (groups + blocks,),
        *(rows, cols, row_grad_stats, col_grad_stats, tables),
        *(*strides, x.n, 0 if y is None else y.n, x.z.shape[1]),
        NORMALIZE=form.normalize,
        PLANES=form.planes,
        BLOCK=min(next_power_of_2(x.z.shape[1]), 256),
        num_warps=4 if form.planes == 1 else 8,  # registers for both halves
    )


def _stride(*made: Tensor | None) -> int:
    """Of the rows of those that are made; they agree."""
    return next((t.stride(0) for t in made if t is not None), 0)


def _inputs(side: Side) -> SideInputs:
    """The operand and the values are written where they are not the embeddings themselves, or the operand."""
    z, operand, values, points, bounds = side
    return SideInputs(
        embeddings=side.embeddings,
        ids=points.ids,
        views=points.views,
        factor=points.factor,
        bias=points.bias,
        operand=None if operand is z else operand,
        exact=None if values is z or values is operand else values,
        ranges=points.ranges,
        bounds=bounds,
    )


def _aligned(n: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised [n, d] whose rows start at multiples of 16 bytes."""
    step = 16 // dtype.itemsize
    return torch.empty(n, cdiv(d, step) * step, dtype=dtype, device=device)[:, :d]


def _describable(z: Tensor) -> bool:
    """Whether a tensor descriptor can point at the tensor itself."""
    step, unit = z.stride()
    aligned = (step * z.itemsize) % 16 == 0 and z.data_ptr() % 16 == 0
    return unit == 1 and step >= z.shape[1] and aligned


def tile_for(kernel: str, operands: Operands) -> TileConfig:
    operand = operands.x.operand
    found = tiles.pick(kernel, device_of(operand.device).architecture, operand.itemsize, operand.shape[1])
    assert found is not None, f"every table has a tile for {kernel}"
    return found.with_modifiers() if operands.modifiers.constant else found
