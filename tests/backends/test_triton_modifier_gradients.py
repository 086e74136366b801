# SPDX-License-Identifier: Apache-2.0
"""Gradients of the modifiers' data from stored weights, in Triton's interpreter, against dense float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.dense import make
from helpers.modified import make_modified, modified_problem
from helpers.oracle import assert_as_accurate
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode

from pycl.backends.registry import why_not

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends.triton import modifiers
from pycl.backends.triton.modifier_gradients import add_gradients
from pycl.core.modifiers import Form, forms
from pycl.core.problem import Gradients, Needs, Problem, empty_gradients, split_by_modifier


def _strips(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weights [m, n] as they are stored, what they were multiplied by, and their values in float64."""
    m, n = len(problem.rows), problem.n_cols()
    scale = torch.tensor([1024.0]) if dtype == torch.float16 else None
    stored = torch.randn(m, -(-n // 8) * 8).mul_(1 if scale is None else scale).to(dtype)[:, :n]
    return stored, scale, stored.double() / (1 if scale is None else scale.double())


def _none_yet(problem: Problem) -> Gradients:
    out = empty_gradients(problem, Needs(rows=False, cols=False, bias=False, modifiers=True))
    out.modifiers.zero_()
    return out


def _from_strips(problem: Problem, stored: Tensor, scale: Tensor | None, rows: int) -> Gradients:
    """The gradients of the modifiers' data from the weights, ``rows`` of them at once."""
    out = _none_yet(problem)
    data = modifiers.encoded(problem).data
    for first in range(0, len(stored), rows):
        add_gradients(problem, data, stored[first : first + rows], scale, first, out)
    return out


def _added(form: Form, row_codes: Any, col_codes: Any, p: Any, q: Any, shared: Any) -> Tensor:
    """[m, n]: what a modifier of pycl.core.modifiers adds to the logits."""
    a, b = (None if x is None else x[:, form.codes] for x in (row_codes, col_codes))
    if form.kind == "label_table":
        return shared[form.shared].view(form.sizes)[a[:, 0]][:, b[:, 0]]
    if form.kind == "agreement":
        return shared[form.shared][(a[:, None] == b).sum(2)]
    if form.kind == "pair_mlp":
        hidden = torch.tanh(p[:, None, form.row_values] + q[:, form.col_values])
        return logsigmoid((hidden * shared[form.shared][:-1]).sum(2) + shared[form.shared][-1])
    assert form.kind == "row_shift"
    return p[:, form.row_values]


def _of_data(problem: Problem, w: Tensor) -> list[Tensor]:
    """The gradients of the modifiers' data by autograd, in the dtype of the logits' gradients w [m, n]."""
    p, symmetric = problem, problem.cols is None
    given = (p.row_values, None if symmetric else p.col_values, p.shared)
    leaves = [None if x is None else x.to(w.dtype).requires_grad_() for x in given]
    codes = p.row_codes, p.row_codes if symmetric else p.col_codes
    values = leaves[0], leaves[0] if symmetric else leaves[1]
    made = sum(_added(form, *codes, *values, leaves[2]).expand(w.shape) for form in forms(p.modifiers))
    wanted = [x for x in leaves if x is not None]
    return list(torch.autograd.grad(made, wanted, w, allow_unused=True, materialize_grads=True))


def _check_strips(problem: Problem, dtype: torch.dtype, rows: int) -> None:
    stored, scale, exact = _strips(problem, dtype)
    out = _from_strips(problem, stored, scale, rows)
    found = [x for x in split_by_modifier(out.modifiers, problem.leaves()) if x.numel()]
    wanted = [_of_data(problem, w) for w in (exact.float(), exact, exact.abs())]
    for got, eager, true, most in zip(found, *wanted, strict=True):
        assert_as_accurate(got, eager, true, torch.float32, magnitude=most.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 33])
@pytest.mark.parametrize("shape", [(1, 65), (70, 1), (3, 2), (131, 99), (131, None)], ids=str)
@pytest.mark.parametrize("kinds", ["LabelTable", "Agreement", "PairMLP", "PairMLP Agreement PairMLP LabelTable"])
def test_gradients_from_strips(kinds: str, shape: tuple[int, int | None], width: int, dtype: torch.dtype) -> None:
    """Strips that end inside of a tile, more labels than points, and partial sums in several launches a strip."""
    case = make_modified(make(*shape, 4, bias=()), *kinds.split(), width=width)
    _check_strips(modified_problem(case, torch.float32), dtype, rows=80)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_a_shift_from_strips(dtype: torch.dtype) -> None:
    problem = modified_problem(make_modified(make(131, 99, 4), "PairMLP"), torch.float32)
    _check_strips(problem.shifted(torch.randn(131)), dtype, rows=80)


class _Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in made if isinstance(made, (list, tuple)) else (made,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kind", "width"), [("LabelTable", 33), ("LabelTable", 100), ("Agreement", 9), ("PairMLP", 40)]
)
def test_nothing_is_larger_than_a_strip(kind: str, width: int, dtype: torch.dtype) -> None:
    """Of networks no hidden units of all pairs; of tables no strip of 16 bits as float32, whose rows a label has."""
    problem = modified_problem(make_modified(make(128, 200, 4, bias=()), kind, width=width), torch.float32)
    stored, scale, _ = _strips(problem, dtype)
    out, data = _none_yet(problem), modifiers.encoded(problem).data
    with _Largest() as largest:
        add_gradients(problem, data, stored, scale, 0, out)
    assert 0 < largest.bytes <= stored.numel() * stored.itemsize
