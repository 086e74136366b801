# SPDX-License-Identifier: Apache-2.0
"""The modifiers of :mod:`pycl.core.modifiers` on a strip of logits; their gradients by autograd within the strip."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pycl.backends.chosen_pairs import ChosenPairs
from pycl.core.modifiers import KINDS as KINDS
from pycl.core.modifiers import Form, ScoreMod, forms
from pycl.core.problem import Gradients, Needs, Problem, empty_gradients, split_by_modifier

ELEMENTS = 1 << 21  # of the largest tensors of a strip, 8 MiB of float32 each
CHUNK = 64  # rows whose chosen pairs are modified in one tile


def strip_rows(problem: Problem, most: int) -> int:
    """How many rows of logits are modified at once: an MLP makes as many numbers of a pair as it is wide."""
    widths = [form.sizes[0] for form in forms(problem.modifiers) if form.kind == "pair_mlp"]
    return max(1, min(most, ELEMENTS // (problem.n_cols() * max(1, *widths, 1))))


class Data(NamedTuple):
    """What the modifiers of a tile read: that of its rows, of its columns, and what is shared."""

    row_codes: Tensor | None
    col_codes: Tensor | None
    row_values: Tensor | None
    col_values: Tensor | None
    shared: Tensor | None

    def of(self, form: Form) -> tuple[Any, ...]:
        """A modifier's own part."""
        parts = form.codes, form.codes, form.row_values, form.col_values
        of_points = (None if x is None else x[:, part] for x, part in zip(self, parts, strict=False))
        return *of_points, None if self.shared is None else self.shared[form.shared]


def modify(modifiers: Sequence[int], data: Data, given: Tensor, in_pos: Tensor | None) -> Tensor:
    """The logits of a tile, ``given`` without modifiers, after them. Limits spare ``in_pos``, all where it is None."""
    made = given
    for form in forms(modifiers):
        row_codes, col_codes, row_values, col_values, shared = data.of(form)
        if form.kind == "label_table":
            lines = shared.view(form.sizes).index_select(0, row_codes[:, 0])
            made = made + lines.index_select(1, col_codes[:, 0])
        elif form.kind == "agreement":
            made = made + _of_agreement(row_codes, col_codes, shared)
        elif form.kind == "pair_mlp":
            hidden = torch.tanh(row_values[:, None] + col_values)
            made = made + logsigmoid(hidden @ shared[:-1] + shared[-1])
        elif form.kind == "limit":
            value = row_values[:, 1:] @ col_values[:, 1:].T if form.sizes[0] else given
            above = (value > row_values[:, :1]) | (value > col_values[:, 0])
            made = made if in_pos is None else made.masked_fill(above & ~in_pos, -torch.inf)
        elif form.kind == "row_shift":
            made = made + row_values
        else:
            made = _scored(ScoreMod.of(form.sizes[0]), made, row_codes, col_codes.T, shared)
    return made


def recorded() -> AbstractContextManager[Any]:
    """Autograd records although this is inside an operator, where a dispatch mode turns it off."""
    return torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)


class ModifiedTile:
    """The logits of rows ``i`` and columns ``j`` after the modifiers; with ``taped`` their gradients can be found."""

    def __init__(
        self, problem: Problem, logits: Tensor, i: slice, j: slice, in_pos: Tensor | None, taped: bool
    ) -> None:
        p, self.problem, self.at = problem, problem, (i, j, slice(None))
        of_cols = (p.row_codes, p.row_values) if p.cols is None else (p.col_codes, p.col_values)
        row_codes, row_values = (None if x is None else x[i] for x in (p.row_codes, p.row_values))
        col_codes, col_values = (None if x is None else x[j] for x in of_cols)
        leaves = [None if x is None else x.detach() for x in (row_values, col_values, p.shared)]
        self.given, self.leaves = logits.detach(), leaves
        with torch.set_grad_enabled(taped), recorded():
            for x in (self.given, *leaves):
                if taped and x is not None:
                    x.requires_grad_()
            data = Data(row_codes, col_codes, *leaves)
            self.made = modify(p.modifiers, data, self.given, in_pos)
        self.logits = self.made.detach()

    def back(self, w: Tensor, gradients: Gradients) -> Tensor:
        """From the gradients of ``logits`` to those of the logits without modifiers; adds those of the data."""
        leaves = [x for x in self.leaves if x is not None]
        with recorded():
            d_given, *found = torch.autograd.grad(
                self.made, [self.given, *leaves], w, allow_unused=True, materialize_grads=True
            )
        if len(gradients.modifiers):
            d_rows, d_cols, d_shared = split_by_modifier(gradients.modifiers, self.problem.leaves())
            into = (d_rows, d_rows if self.problem.cols is None else d_cols, d_shared)
            targets = [to[at] for to, at, x in zip(into, self.at, self.leaves, strict=True) if x is not None]
            for to, part in zip(targets, found, strict=True):
                to += part
        return d_given


def back_at(problem: Problem, given: Tensor, chosen: ChosenPairs, w: Tensor, gradients: Gradients) -> Tensor:
    """``ModifiedTile.back`` for some pairs.

    Args:
        given: the logits of these pairs without modifiers.
        w: the gradients of these pairs' logits, 0 where there is none.
    """
    p = problem
    pairs = p._replace(
        row_codes=None if p.row_codes is None else chosen.of_rows(p.row_codes),
        col_codes=None if p.col_codes is None else chosen.of_cols(p.col_codes),
        row_values=None if p.row_values is None else chosen.of_rows(p.row_values),
        col_values=None if p.col_values is None else chosen.of_cols(p.col_values),
    )
    found, d_given = empty_gradients(pairs, Needs(False, False, False, len(gradients.modifiers) > 0)), w.clone()
    found.modifiers.zero_()
    for start in range(0, len(w), CHUNK):  # modifiers take tiles, and these pairs are the diagonals
        i = slice(start, min(start + CHUNK, len(w)))
        tile = given[i, None].expand(-1, i.stop - i.start)
        d_given[i] = ModifiedTile(pairs, tile, i, i, None, True).back(w[i].diag(), found).diagonal()
    if len(gradients.modifiers):
        d_rows, d_cols, d_shared = split_by_modifier(gradients.modifiers, problem.leaves())
        of_rows, of_cols, of_shared = split_by_modifier(found.modifiers, pairs.leaves())
        d_shared += of_shared
        if p.row_values is not None:
            chosen.add_to_rows(d_rows, of_rows)
        if p.col_values is not None:
            chosen.add_to_cols(d_cols, of_cols)
    return d_given


def _of_agreement(row_codes: Tensor, col_codes: Tensor, shared: Tensor) -> Tensor:
    count = torch.zeros(len(row_codes), len(col_codes), dtype=torch.int64, device=shared.device)
    for t in range(row_codes.shape[1]):
        count += row_codes[:, t, None] == col_codes[:, t]
    found = shared[0].expand(count.shape)
    for t in range(1, len(shared)):  # an index would add up its gradient entry by entry
        found = torch.where(count == t, shared[t], found)
    return found


def _scored(score_mod: ScoreMod, logits: Tensor, rows: Tensor, cols: Tensor, shared: Tensor | None) -> Tensor:
    given, start = [], 0
    for x in score_mod.arguments:
        if isinstance(x, torch.Size) and shared is not None:  # stands for a tensor
            given.append(shared[start : start + x.numel()].view(x))
            start += x.numel()
        else:
            given.append(x)
    made = score_mod.function(logits, rows, cols, *given)
    if not isinstance(made, Tensor) or not made.is_floating_point():
        got = made.dtype if isinstance(made, Tensor) else type(made).__name__
        raise TypeError(f"score_mod must return a floating-point tensor, got {got}")
    if made.shape != logits.shape:
        raise ValueError(f"score_mod must return logits of the shape it got, {[*logits.shape]}, got {[*made.shape]}")
    return made.to(logits.dtype)
