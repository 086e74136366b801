# SPDX-License-Identifier: Apache-2.0
"""Sums of log(1 + e) over many pairs, by one logarithm for a group of them."""

from __future__ import annotations

import triton
import triton.language as tl

from pycl.triton_kernels.numerics import LN2, exp2_of_minus, joined, log1p


@triton.jit
def softplus_parts(l):
    """Two parts of softplus(l) = max(l, 0) + log(1 + e), e = exp -|l|, for l in units of log 2: max(l, 0) and e."""
    return tl.maximum(l, 0.0), exp2_of_minus(tl.abs(l))


@triton.jit
def add_softplus(total, straight, e, BM: tl.constexpr, BN: tl.constexpr):
    """``total`` [BM, 4] with the sums over four groups of columns of straight log 2 + log(1 + e), both [BM, BN].

    A sum of logarithms is that of the product, and a product less 1, (1 + a) (1 + b) - 1 = a + b + a b, keeps the
    digits of a small a that 1 + a would drop. So one logarithm serves a group, the BN / 4 pairs that a thread has of
    a row, whose product is 2^32 at most. As no term is negative, each of the log2(BN / 4) steps adds two roundings.
    """
    e = _join_halves(tl.reshape(e, (BM, BN // 8, 4, 2)))
    e = tl.permute(e, (0, 2, 1))
    for _ in tl.static_range(5):
        if e.shape[2] > 1:
            e = _join_halves(tl.reshape(e, (BM, 4, e.shape[2] // 2, 2)))
    tl.static_assert(e.shape[2] == 1)
    straight = tl.sum(tl.sum(tl.reshape(straight, (BM, BN // 8, 4, 2)), 3), 1)
    return total + (straight * LN2 + log1p(tl.reshape(e, (BM, 4))))


@triton.jit
def _join_halves(e):
    a, b = tl.split(e)
    return joined(a, b)
