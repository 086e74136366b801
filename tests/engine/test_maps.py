# SPDX-License-Identifier: Apache-2.0
"""Sums of a map of the logits: every map against the dense contract, counts, extremes and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.dense import ALL, MAPS, POS_OTHER, SELF, Case, arguments, check, dense, make, pair_sets
from helpers.oracle import FLOOR
from torch import Tensor

from pycl import Pairs, Points, pair_sum

MAP = pytest.mark.parametrize("name", MAPS)
CASES: dict[str, Callable[..., Case]] = {
    "everything": partial(make, 67, 131, 19, offset=3, scale=1.0),
    "itself": partial(make, 150, None, 7, scale=1.0, bias=("row_bias",), tied=True),
    "one_row": partial(make, 1, 77, 3, offset=None, scale=1.0, bias=()),
    "normalized": partial(make, 40, 33, 130, normalize=True, scale="rows"),
    "all": partial(make, 21, 300, 16, denominator=ALL, positives=0, offset=None, scale=1.0),
    "overlapping": partial(make, 129, 129, 5, scale=0.5, denominator=ALL, positives=POS_OTHER | SELF),
}


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("case", CASES)
@MAP
def test_against_dense(name: str, case: str, dtype: torch.dtype, backend: str) -> None:
    check(CASES[case](map=name), backend, dtype)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@MAP
def test_instruction_sets(name: str, dtype: torch.dtype, isa: str) -> None:
    check(CASES["everything"](map=name), "cpu", dtype)


@pytest.mark.parametrize("case", CASES)
@MAP
def test_counts(name: str, case: str, backend: str) -> None:
    problem = CASES[case](map=name)
    points, options = arguments(problem, {k: t.float().requires_grad_() for k, t in problem.leaves.items()})
    options |= {"negatives": Pairs(problem.denominator), "map": name, "backend": backend}
    terms, counts = pair_sum(*points, return_counts=True, **options)
    torch.testing.assert_close(terms, pair_sum(*points, **options), rtol=1e-5, atol=1e-5)
    total, same = pair_sum(*points, return_counts=True, reduction="sum", **options)
    torch.testing.assert_close(total, terms.sum())
    assert torch.equal(same, counts)
    assert not counts.requires_grad
    _, logits = dense(problem, problem.leaves)
    not_zero = [chosen & (MAPS[name](l) != 0) for chosen, l in zip(pair_sets(problem), (logits, -logits), strict=True)]
    assert torch.equal(counts, sum(x.sum(1) for x in not_zero).float())


BIASES = torch.tensor([-torch.inf, torch.nan, 88.5, 300.0, -300.0, -104.0, 0.0])


@pytest.mark.parametrize("sign", [1, -1], ids=["negatives", "positives"])
@MAP
def test_extreme_logits(name: str, sign: int, backend: str) -> None:
    """Whole tiles and partial ones; a logit of -inf is dropped, in either set."""
    zero, bias = torch.zeros(len(BIASES), 4), BIASES.clone().requires_grad_()
    sets = {"negatives": Pairs.ALL} if sign == 1 else {"negatives": Pairs.NONE, "positives": Pairs.ALL}
    options: dict[str, Any] = {"offset": None, "backend": backend, "map": name}
    found = pair_sum(Points(zero), Points(torch.zeros(5, 4)), row_bias=bias, **sets, **options)
    kept = BIASES.double().requires_grad_()
    wanted = torch.where(kept == -torch.inf, 0, 5 * MAPS[name](sign * kept))
    torch.testing.assert_close(found, wanted.float(), rtol=2e-6, atol=1e-35, equal_nan=True)
    slopes = torch.autograd.grad(found.sum(), bias)[0]
    exact = torch.autograd.grad(wanted.sum(), kept)[0].masked_fill(BIASES.isneginf(), 0)
    torch.testing.assert_close(slopes[2:], exact[2:].float(), rtol=5e-6, atol=1e-35)
    assert slopes[0] == 0
    assert slopes[1].isnan()


def test_gradcheck(backend: str) -> None:
    if backend == "triton":
        pytest.skip("takes no float64")
    z = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7)]
    scale, bias = torch.rand(5, dtype=torch.float64, requires_grad=True), torch.randn(7, dtype=torch.float64)
    for name in MAPS:

        def total(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, name: Any = name) -> Tensor:
            sets: dict[str, Any] = {"negatives": Pairs.NEGATIVE, "positives": Pairs.POSITIVE, "offset": None}
            return pair_sum(Points(x), Points(y), scale, col_bias=bias, map=name, backend=backend, **sets)

        assert torch.autograd.gradcheck(total, (*z, scale, bias.requires_grad_()))


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"map must be one of .softplus., .*, .logit_exp., got .tanh."):
        pair_sum(Points(torch.randn(3, 2)), negatives=Pairs.OTHERS, map="tanh")  # type: ignore[call-overload]  # wrong on purpose
