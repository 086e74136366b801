# SPDX-License-Identifier: Apache-2.0
"""A problem as the kernels take it: both sides prepared, descriptors of their operands, the plan of a sweep."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..ops import Problem
from . import operands, pairs, tiles
from .launch import INTERPRETED, launch, recorded_architecture
from .pairs import Points
from .tiles import Tile

GROUP: int = operands.GROUP.value
NO_SELF: int = pairs.NOWHERE.value


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
    """Prepare both sides; a symmetric problem's is one and the same where its operand is."""
    p = problem
    scalar = p.logit_scale.dim() == 0
    dtype, planes = _form(p.rows.dtype, p.normalize)
    factor = None if scalar else p.logit_scale
    row_ids, row_views, col_ids, col_views = p.labelled()
    x = _prepare(p.rows, row_ids, row_views, factor, p.row_bias, p.normalize, dtype, planes, left=True)
    if p.cols is not None:
        y = _prepare(p.cols, col_ids, col_views, None, p.col_bias, p.normalize, dtype, planes, left=False)
    elif planes == 1:
        y = x
    else:
        y = _prepare(p.rows, row_ids, row_views, None, p.row_bias, p.normalize, dtype, planes, left=False)
    meets_nothing = p.offset is None or abs(p.offset) >= NO_SELF
    return Sides(x, y, p.logit_scale if scalar else None, NO_SELF if meets_nothing or p.offset is None else p.offset)


def _form(dtype: torch.dtype, normalize: bool) -> tuple[torch.dtype, int]:
    """The dtype of the operands and the number of products that make one: for float32 what torch is set to.

    "high" is three products of bfloat16 parts, not tf32: 16 bits instead of 10, and the tensor cores cannot read tf32
    operands transposed. Unit vectors need no range: as float16 they keep three bits more than as bfloat16.
    """
    precision = torch.get_float32_matmul_precision() if dtype == torch.float32 else "medium"
    if precision == "highest":
        return torch.float32, 1
    if precision == "high":
        return torch.bfloat16, 3
    return torch.float16 if normalize else torch.bfloat16 if dtype == torch.float32 else dtype, 1


def _prepare(
    z: Tensor,
    ids: Tensor,
    views: Tensor,
    factor: Tensor | None,
    bias: Tensor | None,
    normalize: bool,
    dtype: torch.dtype,
    planes: int,
    left: bool,
) -> Side:
    n, d = z.shape
    groups = triton.cdiv(n, GROUP)
    ranges = torch.empty(4, groups, dtype=torch.int64, device=z.device)
    reach = torch.empty(2, groups, dtype=torch.float32, device=z.device)
    as_given = not normalize and planes == 1 and dtype == z.dtype and _describable(z)
    operand = z if as_given else _aligned(n, planes * d, dtype, z.device)
    # gradients are sums of the embeddings in the weights' dtype: of all their digits where these are split
    values = operand if planes == 1 else _aligned(n, d, torch.float32, z.device) if normalize else z
    launch(
        operands.prepare,
        (groups,),
        *(z, *z.stride(), ids, views, factor, bias),
        *(None if as_given else operand, operand.stride(0)),
        *((values, values.stride(0)) if planes > 1 and normalize else (None, 0)),
        *(ranges, reach, n, d, groups),
        NORMALIZE=normalize,
        PLANES=planes,
        LEFT=left,
        BLOCK=min(triton.next_power_of_2(d), 256),
        num_warps=4,
    )
    return Side(z, operand, values, Points(ids, views, ranges, factor, bias), reach)


def _aligned(n: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised [n, d] whose rows start at multiples of 16 bytes."""
    step = 16 // dtype.itemsize
    return torch.empty(n, triton.cdiv(d, step) * step, dtype=dtype, device=device)[:, :d]


def _describable(z: Tensor) -> bool:
    """Whether a tensor descriptor can point at the tensor itself."""
    step, unit = z.stride()
    aligned = (step * z.itemsize) % 16 == 0 and z.data_ptr() % 16 == 0
    return unit == 1 and step >= z.shape[1] and aligned


class Plan(NamedTuple):
    visits: Tensor  # int32 [row blocks, column blocks]
    counts: Tensor  # int32 [row blocks, 2]
    proven: Tensor  # int32 [1]


def plan(
    sides: Sides, tile: Tile, sets: tuple[int, int], first: int = 0, rows: int | None = None, symmetric: bool = False
) -> Plan:
    """Which column blocks the row blocks of ``rows`` rows visit, and whether no logit can be large.

    It is made and stays on the device.
    """
    x, y = sides.x, sides.y
    n_blocks = triton.cdiv(x.n if rows is None else rows, tile.rows)
    new = functools.partial(torch.empty, dtype=torch.int32, device=x.z.device)
    found = Plan(new(n_blocks, triton.cdiv(y.n, tile.cols)), new(n_blocks, 2), new(1))
    launch(
        pairs.plan,
        (n_blocks,),
        *(x.points, y.points, x.reach, y.reach, sides.logit_scale, *found),
        *(x.n, y.n, first, sides.offset, *sets),
        SYMMETRIC=symmetric,
        BM=tile.rows,
        BN=tile.cols,
        CHUNK=256,
        num_warps=4,
    )
    return found


def architecture(device: torch.device) -> int:
    """90 for compute capability 9.0; 0 in the interpreter."""
    if (recorded := recorded_architecture()) is not None:
        return recorded
    if INTERPRETED:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiprocessors(device: torch.device) -> int:
    if recorded_architecture() is not None:
        return 132
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def tile_for(kernel: str, sides: Sides) -> Tile:
    operand = sides.x.operand
    found = tiles.pick(kernel, architecture(operand.device), operand.itemsize, operand.shape[1])
    assert found is not None, f"every table has a tile for {kernel}"
    return found


def portion(budget: int, bytes_a_block: int, tile: Tile, least: int = 1) -> int:
    """How many rows to take at once where each block of them needs so many bytes."""
    return max(least, budget // bytes_a_block) * tile.rows


def split(blocks: int, slots: int, most: int) -> int:
    """Into how many runs to cut the work of every block so that all slots of the device are busy to the end."""

    def use(runs: int) -> float:
        return blocks * runs / (triton.cdiv(blocks * runs, slots) * slots)

    best = 1
    for runs in range(1, max(1, min(most, triton.cdiv(4 * slots, blocks))) + 1):
        if use(runs) > use(best) + 0.02:
            best = runs
    return best
