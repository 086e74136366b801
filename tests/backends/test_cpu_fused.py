# SPDX-License-Identifier: Apache-2.0
"""Totals whose gradients come with them: those of a backward of its own, whatever is asked for and wherever it is."""

from __future__ import annotations

import pytest
import torch
from helpers.dense import ALL, NEG_OTHER, POS_OTHER, SELF, Case, make, reduced
from helpers.oracle import FLOOR
from torch import Tensor
from torch.testing import assert_close

import pycl.functional as F
from pycl.backends import registry
from pycl.backends.registry import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu, workspace

CASES = {
    "ragged": lambda: make(101, 67, 37, offset=3, denominator=ALL, sides="rows"),  # positives are negatives too
    "square": lambda: make(101, 101, 37, offset=None, denominator=ALL),
    "itself": lambda: make(150, None, 24, bias=(), normalize=True),
    "empty": lambda: make(130, 200, 16, denominator=POS_OTHER, positives=SELF, sides="rows"),
    "apart": lambda: make(130, 200, 16, denominator=NEG_OTHER, positives=SELF, sides="rows"),
    "scale_of_rows": lambda: make(70, 70, 64, scale="rows", bias=("col_bias",)),
    "weighted": lambda: make(101, 67, 37, offset=3, denominator=ALL, sides="rows", weighted=True),
    "steep": lambda: make(130, 130, 50, scale=300.0),
}
APART = "pair_stats", "pair_stats_backward", "pair_sum", "pair_sum_backward"


def total(case: Case, leaves: dict[str, Tensor], of: str, reduction: str = "mean") -> Tensor:
    return reduced(case, leaves, of, reduction, "cpu")


def leaves_of(case: Case, dtype: torch.dtype, wanted: str | None = None) -> dict[str, Tensor]:
    return {k: x.to(dtype).requires_grad_(wanted in (None, k)) for k, x in case.leaves.items()}


def is_close(got: Tensor, want: Tensor) -> None:
    assert_close(got, want, rtol=0, atol=FLOOR[want.dtype] * max(1e-30, float(want.abs().max())))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that ran, in order."""
    found: list[str] = []
    for name in (*APART, "pair_cross_entropy_fused", "pair_sum_fused"):
        plain = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *a, _name=name, _plain=plain: (found.append(_name), _plain(*a))[1])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("of", ["cross_entropy", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_a_backward(
    isa: str, name: str, of: str, dtype: torch.dtype, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]()
    for wanted in (None, *case.leaves):
        leaves = leaves_of(case, dtype, wanted)
        asked = [x for x in leaves.values() if x.requires_grad]
        fused = [total(case, leaves, of, reduction) for reduction in ("mean", "sum")]
        assert len(calls) == 2
        assert not set(calls) & set(APART)
        with monkeypatch.context() as patch:
            patch.setattr(registry, "has", lambda *_: False)
            apart = [total(case, leaves, of, reduction) for reduction in ("mean", "sum")]
        for one, other, slope in zip(fused, apart, (1, -3), strict=True):
            is_close(one.detach(), other.detach())
            found, right = (torch.autograd.grad(slope * x, asked) for x in (one, other))
            for mine, theirs in zip(found, right, strict=True):
                is_close(mine, theirs)
        calls.clear()


@pytest.mark.parametrize("of", ["cross_entropy", "sum"])
def test_backwards_without_end(of: str) -> None:
    case = CASES["square"]()
    leaves = leaves_of(case, torch.float64)
    asked = list(leaves.values())
    loss = total(case, leaves, of)
    once, again, double = (torch.autograd.grad(f * loss, asked, retain_graph=True) for f in (1, 1, 2))
    assert all(map(torch.equal, once, again))
    assert all(torch.equal(2 * one, other) for one, other in zip(once, double, strict=True))
    loss.backward(retain_graph=True)
    for leaf in asked:
        assert leaf.grad is not None
        leaf.grad.zero_()  # not the gradients that the graph holds
    loss.backward()
    assert all(map(torch.equal, once, [leaf.grad for leaf in asked]))


@pytest.mark.parametrize("of", ["cross_entropy", "sum"])
def test_what_the_graph_holds_is_handed_to_nobody(of: str) -> None:
    case = CASES["square"]()
    leaves = leaves_of(case, torch.float32)
    loss = total(case, leaves, of)
    (first,) = torch.autograd.grad(loss, leaves["x"], retain_graph=True)
    expected = first.clone()
    first.zero_()
    assert torch.equal(torch.autograd.grad(loss, leaves["x"])[0], expected)


@pytest.mark.parametrize("leaf", ["x", "scale", "col_bias"])
@pytest.mark.parametrize("of", ["cross_entropy", "sum"])
def test_second_derivatives_are_refused(of: str, leaf: str) -> None:
    case = CASES["square"]()
    leaves = leaves_of(case, torch.float64, leaf)
    (gradient,) = torch.autograd.grad(total(case, leaves, of), leaves[leaf], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(gradient.sum(), leaves[leaf])


CALLS = {
    "clip": lambda x, y, **o: F.clip(x, y, 2.0, **o),
    "dcl": lambda x, y, **o: F.dcl([x, y], **o),
    "info_nce": lambda x, y, **o: F.info_nce(x, y, **o),
    "nt_xent": lambda x, y, **o: F.nt_xent([x, y], **o),
    "siglip": lambda x, y, **o: F.siglip(x, y, 2.0, -1.0, **o),
}


@pytest.mark.parametrize("loss", CALLS)
def test_where_it_is_used(loss: str, calls: list[str]) -> None:
    def of(dtype: torch.dtype = torch.float32, *, grad: bool = True, reduction: str = "mean") -> list[str]:
        calls.clear()
        x, y = (torch.randn(9, 4, dtype=dtype, requires_grad=grad) for _ in range(2))
        value = CALLS[loss](x, y, reduction=reduction, backend="cpu")
        if grad:
            value.sum().backward()
        return list(calls)

    apart = APART[2:] if loss == "siglip" else APART[:2]
    fused = ["pair_sum_fused" if loss == "siglip" else "pair_cross_entropy_fused"]
    assert of() == of(reduction="sum") == of(torch.float64) == fused
    assert of(grad=False) == of(torch.bfloat16, grad=False) == fused
    assert of(grad=False, reduction="none") == [apart[0]]
    assert of(reduction="none") == of(torch.float16) == of(torch.bfloat16) == [*apart]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of", ["cross_entropy", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_a_value_alone_is_the_same(
    isa: str, name: str, of: str, dtype: torch.dtype, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]()
    points = {k: x.to(dtype if k in "xy" or dtype == torch.float64 else torch.float32) for k, x in case.leaves.items()}
    for reduction in ("mean", "sum"):
        before = len(workspace._in_use)
        alone = total(case, points, of, reduction)
        assert not alone.requires_grad
        assert len(calls) == 1
        assert len(workspace._in_use) == before
        if dtype.itemsize >= 4:
            is_close(alone, total(case, {k: x.clone().requires_grad_() for k, x in points.items()}, of, reduction))
        with monkeypatch.context() as patch:
            patch.setattr(registry, "has", lambda *_: False)
            is_close(alone, total(case, points, of, reduction))
        calls.clear()


def test_an_empty_denominator_counts_as_zero() -> None:
    views = torch.randn(2, 1, 5, requires_grad=True)
    loss = F.dcl(views, normalize=False, temperature=1.0)
    assert_close(loss, -(views[0] * views[1]).sum())
    assert_close(torch.autograd.grad(loss, views)[0], -views.detach().flip(0))
