# SPDX-License-Identifier: Apache-2.0
"""Gradients of the modifiers' data from stored weights, a strip of rows at a time.

Nothing here is larger than a strip or than the data themselves. Results repeat bit by bit, as all others do: no sum is
of a library's atomic operations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pycl.backends.triton.launch import cdiv, launch
from pycl.backends.triton.modifiers import constant_of
from pycl.backends.triton.schedule import row_chunks
from pycl.core.modifiers import Form, forms
from pycl.core.problem import Gradients, Problem, split_by_modifier
from pycl.triton_kernels.modifier_gradients import TileSums, modifier_gradients_kernel
from pycl.triton_kernels.modifiers import ModifierData

TILE = 64  # rows and columns of one: nothing is multiplied, so neither features nor tensor cores decide about it
WARPS = 8  # of 16 pairs a thread: with 32 a thread takes 200 registers, and half as many threads wait for each other


def add_gradients(
    problem: Problem, data: ModifierData, weights: Tensor, loss_scale: Tensor | None, first: int, out: Gradients
) -> None:
    """Add what a strip of logits' gradients [rows, n], times ``loss_scale``, is worth to the data of the modifiers.

    What is added to a logit depends on no logit, and limits are constants, which have no gradients.
    """
    p, here = problem, slice(first, first + len(weights))
    d_rows, d_cols, d_shared = split_by_modifier(out.modifiers, p.leaves())
    col_codes, d_cols = (p.row_codes, d_rows) if p.cols is None else (p.col_codes, d_cols)
    for form in forms(p.modifiers):
        if form.kind == "label_table":
            assert p.row_codes is not None
            assert col_codes is not None
            labels = p.row_codes[here, form.codes.start], col_codes[:, form.codes.start]
            _add_by_labels(d_shared[form.shared].view(form.sizes), weights, *labels, loss_scale)
        elif form.kind in ("agreement", "pair_mlp"):
            tiles = _Tiles(len(p.rows), data, weights, loss_scale, first)
            _add_by_tiles(form, tiles, d_rows, d_cols, d_shared)
        elif form.kind == "row_shift":  # one sum that needs no memory beside its result
            d_rows[here, form.row_values.start] += _unscaled(weights.sum(1, dtype=torch.float32), loss_scale)


def _unscaled(sums: Tensor, loss_scale: Tensor | None) -> Tensor:
    return sums if loss_scale is None else sums / loss_scale


def _add_by_labels(
    into: Tensor, weights: Tensor, row_labels: Tensor, col_labels: Tensor, loss_scale: Tensor | None
) -> None:
    """``into[a, b]`` += the weights of all pairs with these labels: rows by their labels first, then columns.

    A kernel would share the table between programs. The library sorts the labels, and adds in their order:
    ``index_put_`` does, where ``index_add_`` has atomic operations. It adds up what has its own dtype, so weights of 16
    bits become float32, half a strip of them at once. Sums over rows are no more than the rows, or than the table.
    """
    step = max(1, len(weights) * weights.itemsize // into.itemsize)
    for some, a in zip(weights.split(step), row_labels.split(step), strict=True):
        to, w, b = into, some.float(), col_labels
        if len(into) > len(a):
            to, w, a, b = into.T, w.T, b, a
        sums = to.new_zeros(len(to), w.shape[1]).index_put_((a,), w, accumulate=True)
        to.T.index_put_((b,), _unscaled(sums, loss_scale).T, accumulate=True)


class _Tiles(NamedTuple):
    """What the kernel reads."""

    m: int
    data: ModifierData
    weights: Tensor
    loss_scale: Tensor | None
    first: int


def _add_by_tiles(form: Form, tiles: _Tiles, d_rows: Tensor, d_cols: Tensor, d_shared: Tensor) -> None:
    """By a kernel: plain torch would have the hidden units of every pair, or a count of the labels that it shares."""
    m, data, weights, loss_scale, first = tiles
    rows, n = weights.shape
    width, numbers = form.row_values.stop - form.row_values.start, form.shared.stop - form.shared.start
    n_blocks = cdiv(n, TILE)
    bytes_a_block = 4 * (width * (n_blocks * TILE + n) + numbers * n_blocks)
    for start, here in row_chunks(rows, weights.numel() * weights.itemsize, bytes_a_block, TILE):
        blocks, new = cdiv(here, TILE), d_shared.new_empty
        sums = TileSums(
            new(n_blocks, width, here) if width else None,
            new(blocks, width, n) if width else None,
            new(numbers, blocks * n_blocks),
        )
        launch(
            modifier_gradients_kernel,
            (blocks * n_blocks,),
            *(weights[start:], weights.stride(0), data, loss_scale, sums),
            *(m, n, first + start, here),
            BM=TILE,
            BN=TILE,
            MODIFIERS=constant_of(form),
            num_warps=WARPS,
        )
        d_shared[form.shared] += sums.shared.sum(1)
        if sums.row_values is not None and sums.col_values is not None:
            d_rows[first + start : first + start + here, form.row_values] += sums.row_values.sum(0).T
            d_cols[:, form.col_values] += sums.col_values.sum(0).T
