# SPDX-License-Identifier: Apache-2.0
"""The transpose of ``prepare``: from the gradient of what the tiles multiplied to the gradient of what was given."""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import cast
from pycl.triton_kernels.prepare import NORM_EPS, is_short, load_rows, norms

HALF_MAX = tl.constexpr(65504.0)


@triton.jit(do_not_specialize=["part_stride", "first", "count", "n", "d", "n_parts"])
def finish(
    parts, part_stride, n_parts, z, stride_n, stride_d, logit_scale, factor, shrink, out, first, count, n, d,
    NORMALIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out`` rows [first, first + count): the sum of the parts, times the scales, through the normalisation, cast."""
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = local < count
    i = tl.where(inside, first + local, n)  # n: outside of z
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if logit_scale is not None:
        scale *= tl.load(logit_scale)
    if factor is not None:
        scale *= tl.load(factor + i, mask=i < n, other=0.0)
    if shrink is not None:
        scale /= tl.load(shrink)
    along = tl.zeros((ROWS,), tl.float32)
    peak, to_unit, inverse_norm, short = scale, scale, scale, inside
    if NORMALIZE:
        peak, relative = norms(z, i, stride_n, stride_d, n, d, BLOCK)
        short = is_short(peak, relative)
        to_unit = tl.where(short, peak / NORM_EPS, 1 / relative)
        inverse_norm = tl.where(short, 1 / NORM_EPS, 1 / relative / peak)
        for k0 in range(0, d, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            g = _sum_of_parts(parts, part_stride, n_parts, local, k, count, d) * scale[:, None]
            x = load_rows(z, i, k, stride_n, stride_d, n, d) / peak[:, None] * to_unit[:, None]
            along += tl.sum(g * x, 1)
        along = tl.where(short, 0.0, along)
    for k0 in range(0, d, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        g = _sum_of_parts(parts, part_stride, n_parts, local, k, count, d) * scale[:, None]
        if NORMALIZE:
            x = load_rows(z, i, k, stride_n, stride_d, n, d) / peak[:, None] * to_unit[:, None]
            g = (g - x * along[:, None]) * inverse_norm[:, None]
            if out.dtype.element_ty == tl.float16:  # 1 / NORM_EPS is beyond float16
                g = tl.where(short[:, None], tl.minimum(tl.maximum(g, -HALF_MAX), HALF_MAX), g)
        at = out + i.to(tl.int64)[:, None] * d + k[None, :]
        tl.store(at, cast(g, out.dtype.element_ty), mask=inside[:, None] & (k < d)[None, :])


@triton.jit
def _sum_of_parts(parts, part_stride, n_parts, local, k, count, d):
    at = parts + local.to(tl.int64)[:, None] * d + k[None, :]
    here = (local < count)[:, None] & (k < d)[None, :]
    total = tl.load(at, mask=here, other=0.0)
    for part in range(1, n_parts):
        total += tl.load(at + part * part_stride.to(tl.int64), mask=here, other=0.0)
    return total
