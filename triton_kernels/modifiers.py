# SPDX-License-Identifier: Apache-2.0
"""What changes the logits of a tile before anything is made of them: weights of pairs, and limits that drop pairs.

Which modifiers there are is a constant of the kernel, a tuple with WIDTH entries for each: its kind, two sizes, and
where its codes, its values of rows and of columns, and its shared numbers begin. With none a kernel is what it was.

Limits compare logits that nothing was added to, so they come first: no tile of its own keeps those.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pycl.triton_kernels.logits import load_attribute
from pycl.triton_kernels.numerics import LOG2E, MINUS_INFINITY, dot, exp2_of_minus, log1p, reciprocal
from pycl.triton_kernels.pair_classes import classes_of_pairs

WIDTH = tl.constexpr(7)
LABEL_TABLE = tl.constexpr("label_table")  # sizes: what a step of the row's and of the column's label is in the table
AGREEMENT = tl.constexpr("agreement")  # labels of a point
PAIR_MLP = tl.constexpr("pair_mlp")  # hidden units
LIMIT = tl.constexpr("limit")  # features of the guide, 0 without one
ROW_SHIFT, COL_SHIFT = tl.constexpr("row_shift"), tl.constexpr("col_shift")
GUIDE_DEPTH = tl.constexpr(16)  # features of a guide that a product takes at once


class ModifierData(NamedTuple):
    """What modifiers read, a line of all points for each code and value; None where no modifier has such."""

    row_codes: Any  # int64 [codes, m]
    col_codes: Any  # int64 [codes, n]
    row_values: Any  # float32 [values, m]
    col_values: Any  # float32 [values, n]
    shared: Any  # float32 [numbers]


@triton.jit
def modified(l, data, matrix, i, j, PER_NAT: tl.constexpr, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr):
    """A tile of logits, PER_NAT units of them in a nat, after the modifiers; every point of a tile IN_BOUNDS exists.

    Such a tile is full: it has no positives. What is -inf is dropped.
    """
    for at in tl.static_range(0, len(MODIFIERS), WIDTH):
        l = _after(l, data, matrix, i, j, PER_NAT, IN_BOUNDS, MODIFIERS, at)
    return l


@triton.jit
def _after(
    l, data, matrix, i, j, PER_NAT: tl.constexpr, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr
):
    """The logits after one modifier; a function of its own, as a loop does not define a constant twice."""
    KIND: tl.constexpr = MODIFIERS[at]
    if KIND == LIMIT:
        return _limited(l, data, matrix, i, j, PER_NAT, IN_BOUNDS, MODIFIERS, at)
    else:
        return l + _added(data, matrix, i, j, IN_BOUNDS, MODIFIERS, at) * PER_NAT


@triton.jit
def may_be_dropped(matrix, MODIFIERS: tl.constexpr):
    """Whether logits of -inf are pairs to leave out: a kernel without biases and modifiers looks for none."""
    return (matrix.rows.bias is not None) or (matrix.cols.bias is not None) or len(MODIFIERS) > 0


@triton.jit
def _added(data, matrix, i, j, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr):
    """[BM, BN], [BM, 1] or [1, BN] nats."""
    KIND: tl.constexpr = MODIFIERS[at]
    if KIND == LABEL_TABLE:
        return _of_labels(data, matrix, i, j, IN_BOUNDS, MODIFIERS, at)
    elif KIND == AGREEMENT:
        return _of_agreement(data, matrix, i, j, IN_BOUNDS, MODIFIERS, at)
    elif KIND == PAIR_MLP:
        return _of_network(data, matrix, i, j, IN_BOUNDS, MODIFIERS, at)
    elif KIND == ROW_SHIFT:
        ROW: tl.constexpr = MODIFIERS[at + 4]
        return _line(data.row_values, ROW, i, matrix.m, IN_BOUNDS)[:, None]
    else:
        tl.static_assert(KIND == COL_SHIFT)
        COL: tl.constexpr = MODIFIERS[at + 5]
        return _line(data.col_values, COL, j, matrix.n, IN_BOUNDS)[None, :]


@triton.jit
def _line(values, number, i, n, IN_BOUNDS: tl.constexpr):
    return load_attribute(values + n.to(tl.int64) * number, i, n, IN_BOUNDS)


@triton.jit
def _of_labels(data, matrix, i, j, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr):
    ROW_STEP: tl.constexpr = MODIFIERS[at + 1]
    COL_STEP: tl.constexpr = MODIFIERS[at + 2]
    CODES: tl.constexpr = MODIFIERS[at + 3]
    SHARED: tl.constexpr = MODIFIERS[at + 6]
    a = _line(data.row_codes, CODES, i, matrix.m, IN_BOUNDS).to(tl.int32) * ROW_STEP
    b = _line(data.col_codes, CODES, j, matrix.n, IN_BOUNDS).to(tl.int32) * COL_STEP
    return tl.load(data.shared + SHARED + (a[:, None] + b[None, :]))


@triton.jit
def _of_agreement(data, matrix, i, j, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr):
    LABELS: tl.constexpr = MODIFIERS[at + 1]
    SHARED: tl.constexpr = MODIFIERS[at + 6]
    count = agreeing(data, matrix, i, j, IN_BOUNDS, MODIFIERS, at)
    found = tl.zeros(count.shape, tl.float32)
    for t in range(LABELS + 1):  # a load by count takes two registers of address for each pair
        found = tl.where(count == t, tl.load(data.shared + SHARED + t), found)
    return found


@triton.jit
def agreeing(data, matrix, i, j, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr):
    """[BM, BN]: how many labels the points of a pair share."""
    LABELS: tl.constexpr = MODIFIERS[at + 1]
    CODES: tl.constexpr = MODIFIERS[at + 3]
    count = tl.zeros((i.shape[0], j.shape[0]), tl.int32)
    for t in range(CODES, CODES + LABELS):
        a = _line(data.row_codes, t, i, matrix.m, IN_BOUNDS)
        b = _line(data.col_codes, t, j, matrix.n, IN_BOUNDS)
        count += (a[:, None] == b[None, :]).to(tl.int32)
    return count


@triton.jit
def _of_network(data, matrix, i, j, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr):
    total = network(data, matrix, i, j, IN_BOUNDS, MODIFIERS, at)
    return tl.minimum(total, 0.0, propagate_nan=tl.PropagateNan.ALL) - log1p(exp2_of_minus(tl.abs(total) * LOG2E))


@triton.jit
def network(data, matrix, i, j, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr):
    """[BM, BN]: sum_k w_k tanh(p_k + q_k) + b, one unit at a time; what is added is its log sigmoid."""
    UNITS: tl.constexpr = MODIFIERS[at + 1]
    SHARED: tl.constexpr = MODIFIERS[at + 6]
    total = tl.zeros((i.shape[0], j.shape[0]), tl.float32) + tl.load(data.shared + SHARED + UNITS)
    for k in range(UNITS):
        w = tl.load(data.shared + SHARED + k)
        total += w - 2 * w * below_one(data, matrix, i, j, k, IN_BOUNDS, MODIFIERS, at)
    return total


@triton.jit
def below_one(data, matrix, i, j, k, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr):
    """[BM, BN]: (1 - tanh x) / 2 of x = p_k + q_k, a hidden unit; that is 1 / (1 + e^2x) for every x."""
    ROW: tl.constexpr = MODIFIERS[at + 4]
    COL: tl.constexpr = MODIFIERS[at + 5]
    p = _line(data.row_values, ROW + k, i, matrix.m, IN_BOUNDS) * (2 * LOG2E)
    q = _line(data.col_values, COL + k, j, matrix.n, IN_BOUNDS) * (2 * LOG2E)
    return reciprocal(1 + tl.exp2(p[:, None] + q[None, :]))


@triton.jit
def _limited(
    l, data, matrix, i, j, PER_NAT: tl.constexpr, IN_BOUNDS: tl.constexpr, MODIFIERS: tl.constexpr, at: tl.constexpr
):
    """-inf where the value of a pair that is no positive is above a limit: its logit's, or its guides' product."""
    FEATURES: tl.constexpr = MODIFIERS[at + 1]
    ROW: tl.constexpr = MODIFIERS[at + 4]
    COL: tl.constexpr = MODIFIERS[at + 5]
    of_row = _line(data.row_values, ROW, i, matrix.m, IN_BOUNDS)
    of_col = _line(data.col_values, COL, j, matrix.n, IN_BOUNDS)
    if FEATURES:
        value = _of_guides(data, matrix, i, j, FEATURES, ROW + 1, COL + 1)
    else:
        value, of_row, of_col = l, of_row * PER_NAT, of_col * PER_NAT
    above = (value > of_row[:, None]) | (value > of_col[None, :])
    if not IN_BOUNDS:
        above &= (classes_of_pairs(matrix, i, j) & matrix.positives) == 0
    return tl.where(above, MINUS_INFINITY, l)


@triton.jit
def _of_guides(data, matrix, i, j, FEATURES: tl.constexpr, ROW: tl.constexpr, COL: tl.constexpr):
    """[BM, BN] products of the guides' embeddings, of all digits whatever the tile's own product has."""
    m, n = matrix.m, matrix.n
    found = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for start in range(0, FEATURES, GUIDE_DEPTH):
        k = start + tl.arange(0, GUIDE_DEPTH)
        known = k < FEATURES
        g = data.row_values + (ROW + k).to(tl.int64)[None, :] * m + i[:, None]
        h = data.col_values + (COL + k).to(tl.int64)[:, None] * n + j[None, :]
        g = tl.load(g, mask=known[None, :] & (i < m)[:, None], other=0.0)
        h = tl.load(h, mask=known[:, None] & (j < n)[None, :], other=0.0)
        found = dot(g, h, found)
    return found
