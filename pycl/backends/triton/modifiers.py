# SPDX-License-Identifier: Apache-2.0
"""Modifiers of pairs as the kernels take them, and the gradients of their data from stored weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pycl.backends.reference_modifiers import Data, modify, recorded, strip_rows
from pycl.backends.triton.launch import recorded_architecture
from pycl.core.modifiers import forms
from pycl.core.problem import Gradients, Problem
from pycl.triton_kernels.modifiers import ModifierData

KINDS = ("label_table", "agreement", "pair_mlp", "limit", "row_shift")  # score_mod is a function of torch


class Encoded(NamedTuple):
    """The kernels' constant that says which modifiers there are, and their data."""

    constant: tuple[str | int, ...]
    data: ModifierData

    def transposed(self) -> Encoded:
        """Those of the matrix with rows and columns exchanged."""
        turned: list[str | int] = []
        for kind, first, second, codes, row_values, col_values, shared in _entries(self.constant):
            if kind == "label_table":
                first, second = second, first
            kind = {"row_shift": "col_shift", "col_shift": "row_shift"}.get(str(kind), kind)
            turned += (kind, first, second, codes, col_values, row_values, shared)
        row_codes, col_codes, of_rows, of_cols, of_all = self.data
        return Encoded(tuple(turned), ModifierData(col_codes, row_codes, of_cols, of_rows, of_all))


NONE = Encoded((), ModifierData(None, None, None, None, None))


def _entries(constant: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    return zip(*[iter(constant)] * 7, strict=True)


def encoded(problem: Problem) -> Encoded:
    """Limits first, whatever the order: they compare logits that nothing was added to."""
    p = problem
    if not p.modifiers:
        return NONE
    constant: list[str | int] = []
    for form in sorted(forms(p.modifiers), key=lambda form: form.kind != "limit"):
        first, second = (form.sizes[1], 1) if form.kind == "label_table" else form.sizes
        starts = form.codes.start, form.row_values.start, form.col_values.start, form.shared.start
        constant += (form.kind, first, second, *starts)
    row_codes, row_values = _lines(p.row_codes), _lines(p.row_values)
    if p.cols is None:
        col_codes, col_values = row_codes, row_values
    else:
        col_codes, col_values = _lines(p.col_codes), _lines(p.col_values)
    return Encoded(tuple(constant), ModifierData(row_codes, col_codes, row_values, col_values, p.shared))


def _lines(of_points: Tensor | None) -> Tensor | None:
    """A line of all points for each number: a block of points then loads neighbours."""
    return None if of_points is None else of_points.T.contiguous()


def add_gradients(problem: Problem, weights: Tensor, loss_scale: Tensor | None, first: int, out: Gradients) -> None:
    """Add what a strip of logits' gradients [rows, n] is worth to the data of the modifiers.

    What is added to a logit depends on no logit, and limits are constants: so autograd sees the additions alone.
    """
    if recorded_architecture() is not None:  # tensors without data, and no launch of a kernel
        return
    p, symmetric = problem, problem.cols is None
    col_codes, col_values = (p.row_codes, p.row_values) if symmetric else (p.col_codes, p.col_values)
    d_rows, d_cols, d_shared = out.of_modifiers(p.leaves())
    rows, n = weights.shape
    step = strip_rows(p, rows)
    nothing = p.logit_scale.new_zeros(1, 1)
    nothing.requires_grad_()  # limits alone leave nothing else that does
    for start in range(0, rows, step):
        here = slice(start, min(start + step, rows))
        i = slice(first + here.start, first + here.stop)
        row_codes, row_values = (None if x is None else x[i] for x in (p.row_codes, p.row_values))
        leaves = [None if x is None else x.detach().requires_grad_() for x in (row_values, col_values, p.shared)]
        w = weights[here].float() if loss_scale is None else weights[here].float() / loss_scale
        with torch.enable_grad(), recorded():
            data, given = Data(row_codes, col_codes, *leaves), nothing.expand(len(w), n)
            made = modify(p.modifiers, data, given, None)
            wanted = [x for x in leaves if x is not None]
            found = torch.autograd.grad(made, wanted, w, allow_unused=True, materialize_grads=True)
        into = (d_rows[i], d_rows if symmetric else d_cols, d_shared)
        for to, part in zip((to for to, x in zip(into, leaves, strict=True) if x is not None), found, strict=True):
            to += part
