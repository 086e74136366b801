# SPDX-License-Identifier: Apache-2.0
"""Robust InfoNCE: its limit, digits of a small difference, range, bad input."""

from __future__ import annotations

import math

import pytest
import torch

import pycl.functional as F
from pycl.testing.formulas import robust_info_nce

Q, K = torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_small_exponent_is_info_nce() -> None:
    found = F.robust_info_nce(Q, K, q=1e-9, lam=0.3, reduction="none")
    torch.testing.assert_close(found, F.info_nce(Q, K, reduction="none") + math.log(0.3), rtol=1e-6, atol=1e-6)


def test_a_small_exponent_keeps_the_digits_of_float32() -> None:
    found = F.robust_info_nce(Q.float(), K.float(), q=1e-6, lam=0.5, reduction="none")
    expected = robust_info_nce(Q.float().double(), K.float().double(), 0.1, 1e-6, 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lam", [0.01, 1.0, 1e3])
def test_where_both_powers_are_equal(lam: float) -> None:
    """One pair with lam = 1 is exactly 0; its gradient is that of the formula on either side."""
    q, k = (torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    found = F.robust_info_nce(q, k, lam=lam, temperature=temperature)
    expected = robust_info_nce(q, k, temperature, 0.5, lam).mean()
    assert (found == 0) == (lam == 1)
    torch.testing.assert_close(found, expected)
    leaves = [q, k, temperature]
    for mine, true in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_factor_that_overflows_alone_does_not_count(sign: int) -> None:
    """A positive at -100 or 100, the other key at the other end: exp of the gap is beyond float32, the value is not."""
    q = torch.eye(2, requires_grad=True)
    k = sign * torch.eye(2) - sign * torch.eye(2).flip(0)
    value = F.robust_info_nce(q, k.requires_grad_(), q=0.5, lam=1.0, temperature=0.01)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [q, k]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"q": 0.0}, ValueError, "q must be"),
        ({"q": 1.1}, ValueError, "q must be"),
        ({"q": None}, TypeError, "q must be a number"),
        ({"lam": 0.0}, ValueError, "lam must be"),
        ({"lam": float("nan")}, ValueError, "lam must be"),
    ],
    ids=str,
)
def test_bad_input(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.robust_info_nce(Q, K, **options)  # type: ignore[arg-type]
    assert F.robust_info_nce(Q, K, q=1.0, lam=1.0).isfinite()
