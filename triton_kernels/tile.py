# SPDX-License-Identifier: Apache-2.0
"""One tile of logits: the product of a block of rows and a block of columns, and what turns it into logits.

Logits are in units of log 2, so that the exponential is the hardware's own and 1 / log 2 costs nothing: it is part of
the scale. Operands come through tensor descriptors: copied by the tensor memory accelerator where there is one, by
ordinary loads elsewhere, zero beyond their ends.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import EMULATED

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MINUS_INFINITY = tl.constexpr(float("-inf"))

STATISTICS = tl.constexpr("statistics")  # what a kernel makes of the logits: log-sum-exps and sums,
LOGISTIC = tl.constexpr("logistic")  # sums of binary logistic losses,
LOGITS = tl.constexpr("logits")  # or themselves


@triton.jit
def dot(a, b, c):
    """c + a b in float32, of float32 operands with all their digits."""
    if EMULATED:  # the interpreter multiplies the bit patterns of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c)
    else:
        return tl.dot(a, b, c, input_precision="ieee")


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
def to_logits(products, unit, rows, cols, i, j, m, n, PER_NAT: tl.constexpr):
    found = products * unit
    if rows.factor is not None:
        found *= tl.load(rows.factor + i, mask=i < m, other=0.0)[:, None]
    if cols.factor is not None:
        found *= tl.load(cols.factor + j, mask=j < n, other=0.0)[None, :]
    if rows.bias is not None:
        found += (tl.load(rows.bias + i, mask=i < m, other=0.0) * PER_NAT)[:, None]
    if cols.bias is not None:
        found += (tl.load(cols.bias + j, mask=j < n, other=0.0) * PER_NAT)[None, :]
    return found


@triton.jit
def softplus(l):
    """log(1 + exp l) for l in units of log 2, to float32's last digits."""
    e = tl.exp2(-tl.abs(l))
    series = e * (1 - e * (1 / 2 - e * (1 / 3 - e * (1 / 4 - e * (1 / 5 - e * (1 / 6))))))  # 1 + e drops digits of e
    return tl.where(l > 0, l * LN2, 0.0) + tl.where(e < 0.125, series, tl.log2(1 + e) * LN2)
