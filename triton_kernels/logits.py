# SPDX-License-Identifier: Apache-2.0
"""One tile of logits: the product of a block of rows and a block of columns, and what turns it into logits.

Logits are in units of log 2, so that the exponential is the hardware's own and 1 / log 2 costs nothing: it is part of
the scale. Operands come through tensor descriptors: copied by the tensor memory accelerator where there is one, by
ordinary loads elsewhere, zero beyond their ends.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import dot

STATISTICS = tl.constexpr("statistics")  # what a kernel makes of the logits: log-sum-exps and sums,
LOGISTIC = tl.constexpr("logistic")  # sums of binary logistic losses,
LOGITS = tl.constexpr("logits")  # or themselves


@triton.jit
def product(
    x, y, kept, r0, c0, d, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
    TURNED: tl.constexpr,
):  # fmt: skip
    """[BM, BN] inner products, and the block of columns where a block holds all features (RESIDENT).

    ``kept`` is then the block of rows, which the caller loaded once. TURNED: the columns are the first operand. That
    decides which pairs a thread holds: those of a few points of the first operand with many of the second. Sums over
    the second's points stay inside a thread but for two shuffles, sums over the first's need three for each number.
    """
    if RESIDENT:
        block = y.load([c0, 0])
        if TURNED:
            return dot(block, kept.T, tl.zeros((BN, BM), tl.float32)).T, block
        else:
            return dot(kept, block.T, tl.zeros((BM, BN), tl.float32)), block
    else:
        found = tl.zeros((BN, BM) if TURNED else (BM, BN), tl.float32)
        for k in range(0, d, BK):
            if TURNED:
                found = dot(y.load([c0, k]), x.load([r0, k]).T, found)
            else:
                found = dot(x.load([r0, k]), y.load([c0, k]).T, found)
        if TURNED:
            found = found.T
        return found, kept


@triton.jit
def load_kept(x, r0, RESIDENT: tl.constexpr):
    """The block of rows where it holds all features; else something that is not used."""
    if RESIDENT:
        return x.load([r0, 0])
    else:
        return r0


@triton.jit
def load_unit(logit_scale, PER_NAT: tl.constexpr):
    """What an inner product is multiplied by: the one scale of all pairs, in the units of the logits."""
    return PER_NAT if logit_scale is None else tl.load(logit_scale) * PER_NAT


@triton.jit
def to_logits(products, unit, rows, cols, i, j, m, n, PER_NAT: tl.constexpr, WHOLE: tl.constexpr):
    found = products * unit
    if rows.factor is not None:
        found *= of_points(rows.factor, i, m, WHOLE)[:, None]
    if cols.factor is not None:
        found *= of_points(cols.factor, j, n, WHOLE)[None, :]
    if rows.bias is not None:
        found += (of_points(rows.bias, i, m, WHOLE) * PER_NAT)[:, None]
    if cols.bias is not None:
        found += (of_points(cols.bias, j, n, WHOLE) * PER_NAT)[None, :]
    return found


@triton.jit
def of_points(values, i, n, WHOLE: tl.constexpr):
    """A number of each point; a WHOLE block has no index to compare and is loaded several numbers at once."""
    if WHOLE:
        return tl.load(values + i)
    else:
        return tl.load(values + i, mask=i < n, other=0.0)
