# SPDX-License-Identifier: Apache-2.0
"""How samples are assigned to prototypes, on codes whose measures are known on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import pycl
from pycl.metrics import Assignments, assignments

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def close(found: Assignments, *, entropy: float, perplexity: float, dead: int, marginal_error: float) -> None:
    assert found.dead == dead
    expected = (entropy, perplexity, marginal_error)
    assert (found.entropy, found.perplexity, found.marginal_error) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@dtypes
def test_hard_codes_that_use_every_prototype(dtype: torch.dtype) -> None:
    close(assignments(torch.eye(7, dtype=dtype)), entropy=0, perplexity=7, dead=0, marginal_error=0)


@dtypes
def test_equal_codes(dtype: torch.dtype) -> None:
    codes = torch.full((5, 7), 1 / 7, dtype=dtype)
    close(found := assignments(codes), entropy=math.log(7), perplexity=7, dead=0, marginal_error=0)
    assert found.perplexity <= 7 * (1 + 1e-12)  # though rows of float32 may sum to more than 1


@dtypes
def test_collapse_to_one_prototype(dtype: torch.dtype) -> None:
    codes = torch.eye(4, dtype=dtype)[[2] * 9]
    close(assignments(codes), entropy=0, perplexity=1, dead=3, marginal_error=2 * 3 / 4)


def test_known_shares() -> None:
    # shares 5/8, 3/8, 0: away from 1/3 by 7/24, 1/24 and 8/24
    codes = torch.tensor([[0.5, 0.5, 0.0], [0.75, 0.25, 0.0]], dtype=torch.float64)
    rows = [math.log(2), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)]
    use = math.exp(-5 / 8 * math.log(5 / 8) - 3 / 8 * math.log(3 / 8))
    close(assignments(codes), entropy=sum(rows) / 2, perplexity=use, dead=1, marginal_error=16 / 24)


def test_marginal_is_what_shares_are_held_against() -> None:
    codes = torch.eye(2)[[0, 0, 0, 1]]
    assert assignments(codes).marginal_error == pytest.approx(0.5)
    marginal = torch.tensor([0.75, 0.25])
    assert assignments(codes, prototype_marginal=marginal).marginal_error == pytest.approx(0.0, abs=1e-7)


def test_dead_is_relative_to_the_marginal() -> None:
    codes = torch.tensor([[0.96, 0.04]])
    assert assignments(codes).dead == 0  # 0.04 is 8 % of an equal share
    assert assignments(codes, dead_below=0.1).dead == 1
    assert assignments(codes, dead_below=0.1, prototype_marginal=torch.tensor([0.7, 0.3])).dead == 0  # 13 %


def test_share_of_a_dead_prototype_lies_below_and_not_at_the_bound() -> None:
    codes = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    assert assignments(codes, dead_below=0.5).dead == 0
    assert assignments(codes, dead_below=0.5 + 1e-9).dead == 1


@dtypes
def test_sinkhorn_meets_the_marginal_in_the_end(dtype: torch.dtype) -> None:
    scores = 2 * torch.rand(64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    marginal = torch.linspace(1, 2, 10, dtype=torch.float64) / 15
    setting = {"prototype_marginal": marginal}
    few, many = (
        assignments(pycl.functional.sinkhorn(scores.to(dtype), iterations=n, **setting), **setting) for n in (1, 300)
    )
    # bfloat16 rounds each code by up to 2^-9 of it
    assert many.marginal_error < 2e-3 < few.marginal_error
    assert many.dead == 0
    assert 0 < many.entropy < math.log(10)


def test_large_half_codes_pass_the_check_of_their_rows() -> None:
    scores = torch.randn(16, 3000, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float16):
        found = assignments((scores / 0.3).softmax(1).to(dtype))
        exact = assignments((scores / 0.3).softmax(1).double())
        assert found.entropy == pytest.approx(exact.entropy, rel=1e-2)
        assert found.perplexity == pytest.approx(exact.perplexity, rel=1e-2)


def test_numbers_are_plain_and_without_gradient() -> None:
    found = assignments(torch.randn(4, 3).softmax(1).requires_grad_())
    assert [type(value) for value in found] == [float, float, int, float]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codes": [[1.0]]}, TypeError, "codes must be a tensor"),
        ({"codes": torch.eye(3, dtype=torch.int64)}, TypeError, "codes must be floating point"),
        ({"codes": torch.ones(3)}, ValueError, "codes must have shape"),
        ({"codes": torch.ones(0, 3)}, ValueError, "codes must have shape"),
        ({"codes": torch.tensor([[torch.nan, 1.0]])}, ValueError, "codes must be finite"),
        ({"codes": torch.tensor([[1.5, -0.5]])}, ValueError, "codes must not be negative, got -0.5"),
        ({"codes": torch.tensor([[1.0, 0.0], [0.5, 0.4]])}, ValueError, "sum to 1 in every row, got 0.9 in row 1"),
        ({"prototype_marginal": torch.ones(2) / 2}, ValueError, r"prototype_marginal must have shape \[3\]"),
        ({"prototype_marginal": torch.tensor([0.5, 0.5, 0.0])}, ValueError, "prototype_marginal must have positive"),
        ({"prototype_marginal": torch.ones(3)}, ValueError, "prototype_marginal must sum to 1"),
        ({"dead_below": 0.0}, ValueError, "dead_below must be positive"),
        ({"dead_below": 1.5}, ValueError, "dead_below must be at most 1"),
        ({"dead_below": "1"}, TypeError, "dead_below must be a number"),
    ],
)
def test_bad_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        assignments(**({"codes": torch.eye(3)} | change))
