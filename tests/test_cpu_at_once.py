# SPDX-License-Identifier: Apache-2.0
"""Sums whose gradients come with them, in one sweep: the same, whatever is asked for and however it is weighted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense import ALL, NEG_OTHER, POS_OTHER, SELF, Case, make
from oracle import FLOOR
from torch import Tensor
from torch.testing import assert_close

import pycl.functional as F
from pycl import Pairs, Points, pair_sum
from pycl.backends import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl import cpu
from pycl.ops import Needs, Problem

CASES = {
    "ragged": lambda: make(101, 67, 37, offset=3, denominator=ALL),  # positives are negatives too
    "itself": lambda: make(150, None, 24, bias=(), normalize=True),
    "apart": lambda: make(130, 200, 16, denominator=NEG_OTHER, positives=SELF),
    "scale_of_rows": lambda: make(70, 99, 64, scale="rows", bias=("col_bias",)),
    "steep": lambda: make(70, 130, 50, scale=300.0),
}


def terms(case: Case, leaves: dict[str, Tensor], *, equal_weights: bool) -> Tensor:
    rows = Points(leaves["x"], case.row_ids, case.row_views)
    cols = Points(leaves["y"], case.col_ids, case.col_views) if "y" in leaves else None
    options: dict[str, Any] = {name: leaves.get(name) for name in ("row_bias", "col_bias")}
    options |= {"offset": case.offset, "normalize": case.normalize, "positives": Pairs(case.positives)}
    sets = {"negatives": Pairs(case.denominator), "equal_weights": equal_weights}
    return pair_sum(rows, cols, leaves["scale"], **sets, **options, backend="cpu")


def leaves_of(case: Case, dtype: torch.dtype, wanted: str | None = None) -> dict[str, Tensor]:
    return {k: x.to(dtype).requires_grad_(wanted in (None, k)) for k, x in case.leaves.items()}


def is_close(got: Tensor, want: Tensor) -> None:
    assert_close(got, want, rtol=0, atol=FLOOR[want.dtype] * max(1e-30, float(want.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_a_second_sweep(isa: str, name: str, dtype: torch.dtype) -> None:
    case = CASES[name]()
    for wanted in (None, *case.leaves):
        leaves = leaves_of(case, dtype, wanted)
        asked = [x for x in leaves.values() if x.requires_grad]
        at_once, apart = (terms(case, leaves, equal_weights=equal) for equal in (True, False))
        is_close(at_once.detach(), apart.detach())
        for one, other in zip(
            torch.autograd.grad(3 * at_once.mean(), asked), torch.autograd.grad(3 * apart.mean(), asked), strict=True
        ):
            is_close(one, other)


def test_other_weights_have_a_sweep_of_their_own() -> None:
    case = CASES["ragged"]()
    leaves = leaves_of(case, torch.float64)
    weights, asked = torch.linspace(-1, 2, 101, dtype=torch.float64), list(leaves.values())
    at_once, apart = (terms(case, leaves, equal_weights=equal) for equal in (True, False))
    found = torch.autograd.grad((at_once * weights).sum(), asked, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad((apart * weights).sum(), asked), strict=True):
        assert torch.equal(one, other)
    again = [torch.autograd.grad(at_once.sum(), asked, retain_graph=True) for _ in range(2)]
    assert all(map(torch.equal, *again))
    twice = torch.autograd.grad(at_once.sum(), asked, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(twice[0].sum(), asked)


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("pair_sum", "pair_sum_gradients", "pair_sum_backward"):
        plain = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *a, _name=name, _plain=plain: (calls.append(_name), _plain(*a))[1])

    def of(dtype: torch.dtype = torch.float32, *, grad: bool = True, reduction: str = "mean") -> list[str]:
        calls.clear()
        image, text = (torch.randn(9, 4, dtype=dtype, requires_grad=grad) for _ in range(2))
        loss = F.siglip(image, text, 2.0, -1.0, reduction=reduction, backend="cpu")
        if grad:
            loss.sum().backward()
        return list(calls)

    assert of() == of(reduction="sum") == of(torch.float64) == ["pair_sum_gradients"]
    assert of(grad=False) == ["pair_sum"]
    assert of(reduction="none") == of(torch.float16) == of(torch.bfloat16) == ["pair_sum", "pair_sum_backward"]


def test_opcheck() -> None:
    for cols in (torch.randn(9, 4), torch.randn(5, 4)):
        bias = torch.randn(7), torch.randn(len(cols))
        sets = int(Pairs.NEGATIVE), int(Pairs.POSITIVE) | POS_OTHER
        problem = Problem(torch.randn(7, 4), cols, None, None, None, None, torch.tensor(2.0), *bias, *sets, 0, False)
        for needs in (Needs(True, True, True), Needs(False, True, False)):
            torch.library.opcheck(torch.ops.pycl.pair_sum_gradients.default, (*problem, needs, "cpu"))
