# SPDX-License-Identifier: Apache-2.0
"""Cross entropies of the engine against the dense contract, reduced or not, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.dense import ALL, N_POSITIVES, NEG_OTHER, POS_OTHER, SELF, Case, dense, make, reduced
from helpers.oracle import FLOOR
from torch import Tensor
from torch.testing import assert_close

from pycl import Pairs, Points, pair_cross_entropy, pair_stats, pair_sum

CASES = {
    "square": lambda: make(37, 37, 11, offset=None),
    "rows": lambda: make(29, 41, 7, sides="rows", scale="rows"),
    "itself": lambda: make(45, None, 7, bias=(), normalize=True),
    "empty": lambda: make(23, 31, 5, denominator=NEG_OTHER, positives=SELF, sides="rows", bias=()),
    "overlapping": lambda: make(19, 19, 5, denominator=ALL, positives=POS_OTHER | SELF),
    "squares": lambda: make(31, 23, 5, sides="rows", scale="rows", map="square"),
    "hinges": lambda: make(31, 23, 5, sides="rows", map="relu"),
    "exponentials": lambda: make(31, None, 5, map="exp"),
}


def right(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    """Terms from the dense statistics."""
    found, _ = dense(case, leaves)
    lses = [lse.masked_fill(lse == -torch.inf, 0) for lse in (found[0], found[4] if case.sides == "both" else found[0])]
    return sum(lses) / 2 - found[2] / N_POSITIVES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_against_dense(name: str, reduction: str, dtype: torch.dtype, backend: str) -> None:
    case = CASES[name]()
    leaves = {k: x.to(dtype).requires_grad_() for k, x in case.leaves.items()}
    exact = {k: x.detach().double().requires_grad_() for k, x in leaves.items()}
    reduce = {"none": lambda t: t, "mean": Tensor.mean, "sum": Tensor.sum}[reduction]
    values = reduced(case, leaves, "cross_entropy", reduction, backend), reduce(right(case, exact))
    weights = torch.linspace(1, 2, values[1].numel(), dtype=torch.float64).view(values[1].shape)
    gradients = (
        torch.autograd.grad((v.double() * weights).sum(), list(x.values()))
        for v, x in zip(values, (leaves, exact), strict=True)
    )
    size = len(case.leaves["x"]) if reduction == "sum" else 1
    for got, want in [values, *zip(*gradients, strict=True)]:
        scale = max(size, float(want.detach().abs().max()))
        assert_close(got.double(), want, rtol=0, atol=4 * FLOOR[dtype] * scale)


Z = torch.randn(4, 3)
IDS = torch.arange(4)
SETS = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pair_cross_entropy(Points(Z), **SETS, reduction="max"), ValueError, "reduction .*'sum'.* 'max'"),
        (lambda: pair_cross_entropy(Points(Z), **SETS, sides="columns"), ValueError, "sides .*'both'.* 'columns'"),
        (
            lambda: pair_cross_entropy(Points(Z, IDS), Points(Z[:3], IDS[:3]), **SETS, sides="both"),
            ValueError,
            "as many cols .* 3 and 4",
        ),
        (lambda: pair_cross_entropy(Points(Z), **SETS, n_positives=0), ValueError, "n_positives .* 1, got 0"),
        (lambda: pair_cross_entropy(Points(Z), **SETS, n_positives=1.5), TypeError, "n_positives .* float"),
        (lambda: pair_sum(Points(Z), negatives=Pairs.NEGATIVE, reduction="max"), ValueError, "reduction .* 'max'"),
    ],
)
def test_wrong_calls(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("n", [None, 60], ids=["itself", "columns"])
def test_a_point_removed_by_bias_has_no_statistics(n: int | None, backend: str) -> None:
    z, bias = torch.randn(50, 4), torch.zeros(50).index_fill(0, torch.tensor([7]), -torch.inf)
    cols = None if n is None else Points(torch.randn(n, 4))
    options: dict[str, Any] = {"row_bias": bias, "backend": backend} | ({"col_bias": bias} if n is None else {})
    stats = pair_stats(Points(z), cols, denominator=Pairs.OTHERS, **options)
    assert stats.lse[7] == -torch.inf
    assert stats.lse.isfinite().sum() == 49
    assert pair_sum(Points(z), cols, negatives=Pairs.OTHERS, **options)[7] == 0
