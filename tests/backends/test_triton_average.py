# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's sums of weighted values: strips, ranges, digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.dense import ALL, NEG_OTHER, POS_OTHER, POS_SAME, Case, make, matrix
from helpers.oracle import assert_as_accurate
from torch import Tensor

from pycl import Pairs, Points
from pycl.backends.registry import why_not
from pycl.engine import pair_average

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends.triton import gradients

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# the problem, and what is averaged: values of the points' dtype, of float32, beyond float16's range
AVERAGES: dict[str, tuple[Any, str]] = {
    "all": (lambda: make(70, 90, 40, denominator=ALL, offset=None, bias=()), "same"),
    "others": (lambda: make(70, 90, 40, offset=3), "float32"),
    "some": (lambda: make(90, 70, 24, denominator=NEG_OTHER | POS_SAME, bias=("col_bias",)), "huge"),
    "few": (lambda: make(40, 50, 24, denominator=POS_OTHER, offset=None), "float32"),
    "unit": (lambda: make(70, 90, 40, scale=20.0, normalize=True, bias=()), "huge"),
    "wide": (lambda: make(40, 50, 200, normalize=True), "same"),
    "tall": (lambda: make(300, 40, 24, offset=3), "same"),
}


def average(case: Case, leaves: dict[str, Tensor], values: Tensor) -> Tensor:
    return pair_average(
        Points(leaves["x"], case.row_ids, case.row_views),
        Points(leaves["y"], case.col_ids, case.col_views),
        values,
        leaves["scale"],
        pairs=Pairs(case.denominator),
        row_bias=leaves.get("row_bias"),
        col_bias=leaves.get("col_bias"),
        offset=case.offset,
        normalize=case.normalize,
        backend="triton",
    )


def softmax_mean(case: Case, leaves: dict[str, Tensor], values: Tensor) -> Tensor:
    return matrix(case, leaves).softmax(1).nan_to_num(0.0) @ values


def with_gradient(function: Any, case: Case, leaves: dict[str, Tensor], values: Tensor, slope: Tensor) -> list[Tensor]:
    values = values.clone().requires_grad_()
    out = function(case, leaves, values)
    return [out.detach(), *torch.autograd.grad(out, values, slope.to(out.dtype))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", AVERAGES)
def test_averages(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means and the values' gradients are as accurate as plain torch's, whatever the range."""
    monkeypatch.setattr(gradients, "STRIP", 0)
    make_problem, of_values = AVERAGES[case]
    problem, size = make_problem(), 1e-9 if of_values == "huge" else 1.0
    leaves = {name: t.to(dtype if name in ("x", "y") else torch.float32) for name, t in problem.leaves.items()}
    values = (torch.randn(len(leaves["y"]), 5) / size).to(dtype if of_values == "same" else torch.float32)
    slope = torch.randn(len(leaves["x"]), 5) * size
    exact = {name: t.double() for name, t in leaves.items()}
    truth = with_gradient(softmax_mean, problem, exact, values.double(), slope.double())
    # of narrow points plain torch rounds logits, weights and values, too
    plain = with_gradient(softmax_mean, problem, {k: t.to(dtype) for k, t in leaves.items()}, values.to(dtype), slope)
    found = with_gradient(average, problem, leaves, values, slope)
    for got, eager, true, most in zip(found, plain, truth, (values, slope), strict=True):
        assert got.dtype == (torch.float32 if most is values else values.dtype)
        assert_as_accurate(got, eager, true, dtype, slack=1.0, magnitude=most.abs().max().item())


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
def test_values_keep_their_digits(narrow: torch.dtype) -> None:
    """One candidate has all the weight: what comes back is its values, not their roundings."""
    z = torch.eye(20, dtype=narrow)
    values = torch.randn(20, 3) * torch.logspace(-2, 4, 20)[:, None]
    for normalize, digits in ((False, 2.0**-16), (True, 2.0**-21)):
        found = pair_average(Points(z), Points(z), values, 100.0, offset=None, normalize=normalize, backend="triton")
        least = values.abs().max().item() * 2.0**-30 if normalize or narrow == torch.float16 else 0.0
        digits_here = 2.0**-21 if narrow == torch.float16 else digits
        assert ((found - values).abs() <= values.abs() * digits_here + least).all()
