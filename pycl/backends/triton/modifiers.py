# SPDX-License-Identifier: Apache-2.0
"""Modifiers of pairs as the kernels take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from pycl.core.modifiers import Form, forms
from pycl.core.problem import Problem
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
        constant += constant_of(form)
    row_codes, row_values = _lines(p.row_codes), _lines(p.row_values)
    if p.cols is None:
        col_codes, col_values = row_codes, row_values
    else:
        col_codes, col_values = _lines(p.col_codes), _lines(p.col_values)
    return Encoded(tuple(constant), ModifierData(row_codes, col_codes, row_values, col_values, p.shared))


def constant_of(form: Form) -> tuple[str | int, ...]:
    """What the kernels know of one modifier when they are compiled."""
    first, second = (form.sizes[1], 1) if form.kind == "label_table" else form.sizes
    starts = form.codes.start, form.row_values.start, form.col_values.start, form.shared.start
    return form.kind, first, second, *starts


def _lines(of_points: Tensor | None) -> Tensor | None:
    """A line of all points for each number: a block of points then loads neighbours."""
    return None if of_points is None else of_points.T.contiguous()
