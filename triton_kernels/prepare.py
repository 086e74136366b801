# SPDX-License-Identifier: Apache-2.0
"""What comes before the sweeps, in one launch: points and gradients of statistics as the sweeps read them.

Every embedding is read once: it is normalised, cast or split, and what decides about whole tiles is noted (the range
of the labels, how large a logit can get).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.logit_gradient import BothGradStats, tabulate
from pycl.triton_kernels.numerics import INFINITY, cast
from pycl.triton_kernels.pair_classes import HIGHEST, LABEL_GROUP, LOWEST, load_ids, load_views

ALIGNED = tl.constexpr(4)  # entries: rows of what is made here start at multiples of 16 bytes, float32's included
NORM_EPS = tl.constexpr(1e-12)  # as torch.nn.functional.normalize
TINY = tl.constexpr(1.1754943508222875e-38)


class Embeddings(NamedTuple):
    """As the caller gave them; all None where nobody reads them."""

    z: Any
    stride_n: Any
    stride_d: Any


class SideInputs(NamedTuple):
    """One side as the caller gave it, and where to write what the tiles need of it: pointers, or None."""

    embeddings: Any  # Embeddings; without a ``z`` there is no such side
    ids: Any  # int64 [n]; None where the points are numbered
    views: Any  # int64 [n]; None where all are of one view
    factor: Any  # float32 [n]
    bias: Any  # float32 [n]
    operand: Any  # [n, d] or [n, 3 d]
    exact: Any  # float32 [n, d]; not "values", which a tuple of Triton has
    ranges: Any  # int64 [4, groups]
    bounds: Any  # float32 [2, groups]


@triton.jit
def load_rows(embeddings, i, k, n, d):
    at = i.to(tl.int64)[:, None] * embeddings.stride_n + k.to(tl.int64)[None, :] * embeddings.stride_d
    return tl.load(embeddings.z + at, mask=(i < n)[:, None] & (k < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def norms(embeddings, i, n, d, BLOCK: tl.constexpr):
    """The largest entry of each row (at least TINY), and the norm in units of it: squares would leave the range."""
    peak = tl.zeros(i.shape, tl.float32)
    for k0 in range(0, d, BLOCK):
        x = load_rows(embeddings, i, k0 + tl.arange(0, BLOCK), n, d)
        peak = tl.maximum(peak, tl.max(tl.abs(x), 1))
    peak = tl.where(peak < TINY, TINY, peak)
    square = tl.zeros(i.shape, tl.float32)
    for k0 in range(0, d, BLOCK):
        x = load_rows(embeddings, i, k0 + tl.arange(0, BLOCK), n, d) / peak[:, None]
        square += tl.sum(x * x, 1)
    return peak, tl.sqrt(square)


@triton.jit
def is_short(peak, relative):
    """Rows whose norm counts as NORM_EPS, a constant; not those with a NaN, which a maximum would hide."""
    return relative * peak < NORM_EPS


@triton.jit(do_not_specialize=["operand_stride", "exact_stride", "m", "n", "d"])
def prepare_kernel(
    rows, cols, row_grad_stats, col_grad_stats, tables, operand_stride, exact_stride, m, n, d,
    NORMALIZE: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A group of points of the rows; behind these of the columns, behind these a block of the tables, where asked for.

    A symmetric problem has its columns among the rows where one operand serves both.
    """
    program, first_block = tl.program_id(0), tl.cdiv(m, LABEL_GROUP)
    if program < first_block:
        _prepare_group(rows, program, operand_stride, exact_stride, m, d, NORMALIZE, PLANES, True, BLOCK)
    if cols.embeddings.z is not None:
        group = program - first_block
        first_block += tl.cdiv(n, LABEL_GROUP)
        if (group >= 0) & (program < first_block):
            _prepare_group(cols, group, operand_stride, exact_stride, n, d, NORMALIZE, PLANES, False, BLOCK)
    if tables.rows is not None:
        if program >= first_block:
            grad_stats = BothGradStats(row_grad_stats, col_grad_stats)
            tabulate(grad_stats, tables, program - first_block, rows.factor, m, n, 4096)


@triton.jit
def _prepare_group(
    side, group, operand_stride, exact_stride, n, d,
    NORMALIZE: tl.constexpr, PLANES: tl.constexpr, LEFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``operand`` gets the embeddings in its own dtype, ``exact`` in float32.

    With PLANES = 3 it is [n, 3 d] and one long product of the rows' (high, high, low) and the columns' (high, low,
    high) is the three-product form of a float32 product. ``ranges`` gets the smallest and largest id and view,
    ``bounds`` the largest norm times factor and the largest bias.
    """
    groups = tl.cdiv(n, LABEL_GROUP)
    i = group * LABEL_GROUP + tl.arange(0, LABEL_GROUP)
    inside = i < n
    peak, relative = norms(side.embeddings, i, n, d, BLOCK)
    to_unit = tl.where(is_short(peak, relative), peak / NORM_EPS, 1 / relative)
    if side.operand is not None or side.exact is not None:
        for k0 in range(0, d, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            x = load_rows(side.embeddings, i, k, n, d)
            if NORMALIZE:
                x = x / peak[:, None] * to_unit[:, None]
            here = inside[:, None] & (k < d)[None, :]
            if side.exact is not None:
                start = i.to(tl.int64)[:, None] * tl.multiple_of(exact_stride, ALIGNED)
                tl.store(side.exact + start + k[None, :], x, mask=here)
            if side.operand is not None:
                start = i.to(tl.int64)[:, None] * tl.multiple_of(operand_stride, ALIGNED)
                at = side.operand + start + k[None, :]
                high = cast(x, side.operand.dtype.element_ty)
                tl.store(at, high, mask=here)
                if PLANES == 3:
                    low = cast(x - high.to(tl.float32), side.operand.dtype.element_ty)
                    tl.store(at + d, high if LEFT else low, mask=here)
                    tl.store(at + 2 * d, low if LEFT else high, mask=here)

    length = relative * (to_unit * 1.02 if NORMALIZE else peak)  # the cast may lengthen a unit vector
    if side.factor is not None:
        length *= tl.abs(tl.load(side.factor + i, mask=inside, other=0.0))
    bias = tl.zeros(i.shape, tl.float32)
    if side.bias is not None:
        bias = tl.abs(tl.load(side.bias + i, mask=inside, other=0.0))
    # a maximum passes over NaN, a bound must not
    tl.store(side.bounds + group, tl.max(tl.where(length == length, length, INFINITY), 0))
    tl.store(side.bounds + groups + group, tl.max(tl.where(bias == bias, bias, INFINITY), 0))
    ids, views = load_ids(side.ids, i, n), load_views(side.views, i, n)
    tl.store(side.ranges + group, tl.min(tl.where(inside, ids, HIGHEST), 0))
    tl.store(side.ranges + groups + group, tl.max(tl.where(inside, ids, LOWEST), 0))
    tl.store(side.ranges + 2 * groups + group, tl.min(tl.where(inside, views, HIGHEST), 0))
    tl.store(side.ranges + 3 * groups + group, tl.max(tl.where(inside, views, LOWEST), 0))
