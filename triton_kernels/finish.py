# SPDX-License-Identifier: Apache-2.0
"""The transpose of ``prepare``: from the gradient of what the tiles multiplied to the gradient of what was given."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import cast
from pycl.triton_kernels.prepare import NORM_EPS, is_short, load_rows, norms

HALF_MAX = tl.constexpr(65504.0)


class _Partials(NamedTuple):
    """Sums of weighted embeddings [n_partials, rows_here, d], float32."""

    pointer: Any
    stride: Any
    n_partials: Any
    rows_here: Any
    d: Any


@triton.jit(do_not_specialize=["stride", "n_partials", "first_row", "rows_here", "n", "d"])
def finish_gradient_kernel(
    partials, stride, n_partials, embeddings, logit_scale, factor, loss_scale, out, first_row, rows_here, n, d,
    NORMALIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out`` rows [first_row, first_row + rows_here): the partials' sum, scaled, through the normalisation, cast."""
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = local < rows_here
    i = tl.where(inside, first_row + local, n)  # n: outside of the embeddings
    sums = _Partials(partials, stride, n_partials, rows_here, d)
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if logit_scale is not None:
        scale *= tl.load(logit_scale)
    if factor is not None:
        scale *= tl.load(factor + i, mask=i < n, other=0.0)
    if loss_scale is not None:
        scale /= tl.load(loss_scale)
    along = tl.zeros((ROWS,), tl.float32)
    peak, to_unit, inverse_norm, short = scale, scale, scale, inside
    if NORMALIZE:
        peak, relative = norms(embeddings, i, n, d, BLOCK)
        short = is_short(peak, relative)
        to_unit = tl.where(short, peak / NORM_EPS, 1 / relative)
        inverse_norm = tl.where(short, 1 / NORM_EPS, 1 / relative / peak)
        for k0 in range(0, d, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            g = _sum_of_partials(sums, local, k) * scale[:, None]
            x = load_rows(embeddings, i, k, n, d) / peak[:, None] * to_unit[:, None]
            along += tl.sum(g * x, 1)
        along = tl.where(short, 0.0, along)
    for k0 in range(0, d, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        g = _sum_of_partials(sums, local, k) * scale[:, None]
        if NORMALIZE:
            x = load_rows(embeddings, i, k, n, d) / peak[:, None] * to_unit[:, None]
            g = (g - x * along[:, None]) * inverse_norm[:, None]
            if out.dtype.element_ty == tl.float16:  # 1 / NORM_EPS is beyond float16
                g = tl.where(short[:, None], tl.minimum(tl.maximum(g, -HALF_MAX), HALF_MAX), g)
        at = out + i.to(tl.int64)[:, None] * d + k[None, :]
        tl.store(at, cast(g, out.dtype.element_ty), mask=inside[:, None] & (k < d)[None, :])


@triton.jit
def _sum_of_partials(partials, local, k):
    d = partials.d
    at = partials.pointer + local.to(tl.int64)[:, None] * d + k[None, :]
    here = (local < partials.rows_here)[:, None] & (k < d)[None, :]
    total = tl.load(at, mask=here, other=0.0)
    for part in range(1, partials.n_partials):
        total += tl.load(at + part * partials.stride.to(tl.int64), mask=here, other=0.0)
    return total
