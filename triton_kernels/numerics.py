# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of single numbers: casts, products of blocks, exponentials and logarithms by one instruction."""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.interpreter import EMULATED

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))
MINUS_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def cast(x, dtype: tl.constexpr):
    """x in another floating-point type, rounded to the nearest."""
    if EMULATED and dtype == tl.bfloat16:  # the interpreter cuts digits off
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, rounded, x)
    return x.to(dtype)


@triton.jit
def dot(a, b, c):
    """c + a b in float32, of float32 operands with all their digits."""
    if EMULATED:  # the interpreter multiplies the bit patterns of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c)
    else:
        return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def exp2_of_minus(x):
    """2^-x in one instruction: a product with -1 is a sign that it reads, 0 - x would be a difference of its own."""
    return tl.exp2(x * -1.0)


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
