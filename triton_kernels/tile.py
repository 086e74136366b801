# SPDX-License-Identifier: Apache-2.0
"""One tile of logits: the product of a block of rows and a block of columns, and what turns it into logits.

Logits are in units of log 2, so that the exponential is the hardware's own and 1 / log 2 costs nothing: it is part of
the scale. Operands come through tensor descriptors: copied by the tensor memory accelerator where there is one, by
ordinary loads elsewhere, zero beyond their ends.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.launch import EMULATED

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


@triton.jit
def losses(l):
    """Two parts of softplus(l) = max(l, 0) + log(1 + e), e = exp -|l|, for l in units of log 2: max(l, 0) and e."""
    return tl.maximum(l, 0.0), exp2_of_minus(tl.abs(l))


@triton.jit
def exp2_of_minus(x):
    """2^-x in one instruction: a product with -1 is a sign that it reads, 0 - x would be a difference of its own."""
    return tl.exp2(x * -1.0)


@triton.jit
def add_losses(total, straight, e, BM: tl.constexpr, BN: tl.constexpr):
    """``total`` [BM, 4] with the sums over four groups of columns of straight log 2 + log(1 + e), both [BM, BN].

    A sum of logarithms is that of the product, and a product less 1, (1 + a) (1 + b) - 1 = a + b + a b, keeps the
    digits of a small a that 1 + a would drop. So one logarithm serves a group, the BN / 4 pairs that a thread has of
    a row, whose product is 2^32 at most. As no term is negative, each of the log2(BN / 4) steps adds two roundings.
    """
    e = _joined(tl.reshape(e, (BM, BN // 8, 4, 2)))
    e = tl.permute(e, (0, 2, 1))
    for _ in tl.static_range(5):
        if e.shape[2] > 1:
            e = _joined(tl.reshape(e, (BM, 4, e.shape[2] // 2, 2)))
    tl.static_assert(e.shape[2] == 1)
    straight = tl.sum(tl.sum(tl.reshape(straight, (BM, BN // 8, 4, 2)), 3), 1)
    return total + (straight * LN2 + log1p(tl.reshape(e, (BM, 4))))


@triton.jit
def _joined(e):
    a, b = tl.split(e)
    return joined(a, b)


@triton.jit
def joined(a, b):
    """(1 + a) (1 + b) - 1."""
    return a + (b + a * b)


@triton.jit
def log1p(f):
    """log(1 + f) of f >= 0, up to 2^-22 of it wrong and so no more than the exponentials it is made of."""
    s = f * reciprocal(2 + f)  # log(1 + f) = 2 artanh s, where s <= 1/3 by its series: what is left out is 2^-26 of it
    z = s * s
    series = 1 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + z * (1 / 13))))))
    return tl.where(f < 1, 2 * s * series, _log2(1 + f) * LN2)


@triton.jit
def reciprocal(x):
    """1 / x of x >= 1, by one instruction: up to 2^-23 of it wrong, 0 where it would be denormal."""
    if EMULATED:
        return 1 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def _log2(x):
    """By one instruction, which is up to 2^-22 wrong below 2, and 2^-22 of it above."""
    if EMULATED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
