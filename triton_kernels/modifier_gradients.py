# SPDX-License-Identifier: Apache-2.0
"""What a stored strip of weights is worth to the data of a modifier: sums over one tile a program, added elsewhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.modifiers import AGREEMENT, PAIR_MLP, agreeing, below_one, network
from pycl.triton_kernels.numerics import LOG2E, reciprocal
from pycl.triton_kernels.pair_classes import UNSPECIALIZED, PairMatrix


class TileSums(NamedTuple):
    """Where the sums go: pointers, or None where a modifier has no such data. Every number has one writer."""

    row_values: Any  # float32 [column blocks, values, rows_here]: over the columns of a tile
    col_values: Any  # float32 [row blocks, values, n]: and over its rows
    shared: Any  # float32 [numbers, tiles]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def modifier_gradients_kernel(
    weights, stride, modifiers, loss_scale, out, m, n, first_row, rows_here,
    BM: tl.constexpr, BN: tl.constexpr, MODIFIERS: tl.constexpr,
):  # fmt: skip
    """One tile a program, of ``weights`` [rows_here, n] from ``first_row`` on; MODIFIERS is a single one.

    ``out`` are ``TileSums``. What is added to a logit depends on no logit, so one modifier knows nothing of others.
    """
    tile, n_blocks = tl.program_id(0), tl.cdiv(n, BN)
    row_block, col_block = tile // n_blocks, tile % n_blocks
    n_tiles = tl.cdiv(rows_here, BM).to(tl.int64) * n_blocks
    local, j = row_block * BM + tl.arange(0, BM), col_block * BN + tl.arange(0, BN)
    i = first_row + local
    inside, known = local < rows_here, j < n
    at = weights + local.to(tl.int64)[:, None] * stride + j[None, :]
    w = tl.load(at, mask=inside[:, None] & known[None, :], other=0.0).to(tl.float32)
    if loss_scale is not None:
        w /= tl.load(loss_scale)
    matrix = PairMatrix(None, None, m, n, 0, 0, 0)
    KIND: tl.constexpr = MODIFIERS[0]
    SIZE: tl.constexpr = MODIFIERS[1]
    if KIND == AGREEMENT:
        count = agreeing(modifiers, matrix, i, j, False, MODIFIERS, 0)
        for t in range(SIZE + 1):
            tl.store(out.shared + t * n_tiles + tile, tl.sum(tl.where(count == t, w, 0.0)))
    else:
        tl.static_assert(KIND == PAIR_MLP)
        SHARED: tl.constexpr = MODIFIERS[6]
        # through the log sigmoid, whose slope is 1 / (1 + e^x)
        w *= reciprocal(1 + tl.exp2(network(modifiers, matrix, i, j, False, MODIFIERS, 0) * LOG2E))
        of_all = tl.sum(w)
        tl.store(out.shared + SIZE * n_tiles + tile, of_all)
        for k in range(SIZE):
            rest = below_one(modifiers, matrix, i, j, k, False, MODIFIERS, 0)
            part = w * rest  # tanh is 1 - 2 rest, its slope 4 rest (1 - rest)
            slope = part - part * rest
            of_unit = 4 * tl.load(modifiers.shared + SHARED + k)
            of_rows = out.row_values + (col_block * SIZE + k).to(tl.int64) * rows_here + local
            of_cols = out.col_values + (row_block * SIZE + k).to(tl.int64) * n + j
            tl.store(out.shared + k * n_tiles + tile, of_all - 2 * tl.sum(part))
            tl.store(of_rows, of_unit * tl.sum(slope, 1), mask=inside)
            tl.store(of_cols, of_unit * tl.sum(slope, 0), mask=known)
