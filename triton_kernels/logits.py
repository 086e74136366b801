# SPDX-License-Identifier: Apache-2.0
"""One tile of logits: the product of a block of rows and a block of columns, and what turns it into logits.

Logits are in units of log 2, so that the exponential is the hardware's own and 1 / log 2 costs nothing: it is part of
the scale. Operands come through tensor descriptors: copied by the tensor memory accelerator where there is one, by
ordinary loads elsewhere, zero beyond their ends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import dot

STATISTICS = tl.constexpr("statistics")  # what a kernel makes of the logits: log-sum-exps and sums,
SOFTPLUS = tl.constexpr("softplus")  # sums of a map, of binary logistic losses for one,
SQUARE, RELU, EXP = tl.constexpr("square"), tl.constexpr("relu"), tl.constexpr("exp")
LOGITS = tl.constexpr("logits")  # or themselves


class Operands(NamedTuple):
    """What a tile's logits are made of; a kernel makes it of its arguments."""

    x: Any  # descriptor of the rows
    y: Any  # of the columns, in blocks or in pieces of blocks
    scale: Any  # of all inner products, in the units of the logits
    x_block: Any  # the block of rows, which ``load_x_block`` gave
    d: Any
    modifiers: Any  # ModifierData


class TileShape(NamedTuple):
    """Numbers that the compiler knows. Written where it is passed on: a variable would make tensors of them."""

    BM: Any
    BN: Any
    BK: Any  # features a product takes at once
    ALL_FEATURES: Any  # whether those are all


@triton.jit
def product(operands, r0, c0, TILE, TRANSPOSED: tl.constexpr):
    """[BM, BN] inner products, and the block of columns where a block holds ALL_FEATURES.

    TRANSPOSED: the columns are the first operand. That decides which pairs a thread holds: those of a few points of the
    first operand with many of the second. Sums over the second's points stay inside a thread but for two shuffles, sums
    over the first's need three for each number.
    """
    x, y = operands.x, operands.y
    if TILE.ALL_FEATURES:
        block = y.load([c0, 0])
        if TRANSPOSED:
            return dot(block, operands.x_block.T, tl.zeros((TILE.BN, TILE.BM), tl.float32)).T, block
        else:
            return dot(operands.x_block, block.T, tl.zeros((TILE.BM, TILE.BN), tl.float32)), block
    else:
        found = tl.zeros((TILE.BN, TILE.BM) if TRANSPOSED else (TILE.BM, TILE.BN), tl.float32)
        for k in range(0, operands.d, TILE.BK):
            if TRANSPOSED:
                found = dot(y.load([c0, k]), x.load([r0, k]).T, found)
            else:
                found = dot(x.load([r0, k]), y.load([c0, k]).T, found)
        if TRANSPOSED:
            found = found.T
        return found, operands.x_block


@triton.jit
def load_x_block(x, r0, ALL_FEATURES: tl.constexpr):
    """The block of rows where it holds all features, so that it stays on chip; else something that is not used."""
    if ALL_FEATURES:
        return x.load([r0, 0])
    else:
        return r0


@triton.jit
def load_scale(logit_scale, PER_NAT: tl.constexpr):
    """The one scale of all inner products; PER_NAT: units of the logits in a nat."""
    return PER_NAT if logit_scale is None else tl.load(logit_scale) * PER_NAT


@triton.jit
def to_logits(products, scale, matrix, i, j, PER_NAT: tl.constexpr, IN_BOUNDS: tl.constexpr):
    """``products`` times the scales, plus the biases; every point of a tile IN_BOUNDS exists."""
    rows, cols, m, n = matrix.rows, matrix.cols, matrix.m, matrix.n
    found = products * scale
    if rows.factor is not None:
        found *= load_attribute(rows.factor, i, m, IN_BOUNDS)[:, None]
    if cols.factor is not None:
        found *= load_attribute(cols.factor, j, n, IN_BOUNDS)[None, :]
    if rows.bias is not None:
        found += (load_attribute(rows.bias, i, m, IN_BOUNDS) * PER_NAT)[:, None]
    if cols.bias is not None:
        found += (load_attribute(cols.bias, j, n, IN_BOUNDS) * PER_NAT)[None, :]
    return found


@triton.jit
def load_attribute(values, i, n, IN_BOUNDS: tl.constexpr):
    """A number of each point; a block IN_BOUNDS has no index to compare and is loaded several numbers at once."""
    if IN_BOUNDS:
        return tl.load(values + i)
    else:
        return tl.load(values + i, mask=i < n, other=0.0)
