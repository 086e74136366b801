# SPDX-License-Identifier: Apache-2.0
"""Spectral, VICReg, Barlow Twins, KoLeo: every route to a value, values of lightly, edges, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.oracle import widest
from torch import Tensor

import pycl.functional as F
from pycl.testing import formulas

LOSSES = {"spectral": F.spectral, "vicreg": F.vicreg, "barlow_twins": F.barlow_twins}
losses = pytest.mark.parametrize("name", LOSSES)


@losses
@pytest.mark.parametrize(
    ("n", "d"),
    [(40, 6), (12, 6), (11, 6), (6, 8), (4, 16), (4, 17), (3, 40), (1, 4), (2, 1)],
    ids=lambda n: str(n),
)
def test_every_route(name: str, n: int, d: int, backend: str) -> None:
    """Products of features stored, products of features summed, products of instances summed."""
    dtype = widest(backend)
    x, y = (torch.randn(n, d, dtype=dtype).requires_grad_() for _ in range(2))
    found = LOSSES[name](x, y, backend=backend)
    expected = getattr(formulas, name)(x.double(), y.double())
    tolerance = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    for mine, true in zip(torch.autograd.grad(found, [x, y]), torch.autograd.grad(expected, [x, y]), strict=True):
        torch.testing.assert_close(mine, true, **tolerance)


@losses
def test_traced_routes_are_those_of_one_call(name: str) -> None:
    for n, d in ((40, 6), (3, 40)):
        x, y = torch.randn(2, n, d).double()
        torch.testing.assert_close(torch.func.grad(LOSSES[name])(x, y), gradient_of(name, x, y))


def gradient_of(name: str, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(LOSSES[name](leaf, y), leaf)
    return found


@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [
        (lambda x, y: F.koleo(x), 1.4353692876097361, 2.2496388956979105),
        (F.barlow_twins, 0.4724958280480898, 0.5078755996081844),
        (F.vicreg, 21.648201872766933, 6.117286144045408),
    ],
    ids=["koleo", "barlow_twins", "vicreg"],
)
def test_values_of_lightly(loss: Callable[..., Tensor], value: float, gradient: float) -> None:
    """Of its version 1.6.0: the value, and the norm of the gradient of the first view."""
    x = torch.linspace(-2, 3, 28, dtype=torch.float64).view(7, 4).sin()
    x *= torch.linspace(0.5, 2, 7, dtype=torch.float64)[:, None]
    y = x.flip(0).cos()
    x.requires_grad_()
    found = loss(x, y)
    torch.testing.assert_close(found.item(), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0].norm().item(), gradient, rtol=1e-10, atol=0)


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("change", ["constant", "identical", "zero", "shifted"])
def test_extremes_are_finite(name: str, dtype: torch.dtype, change: str) -> None:
    x, y = torch.randn(2, 12, 16)
    x, y = (
        {
            "constant": lambda z: z.index_fill(1, torch.tensor([2]), 3.0),  # a feature without variance
            "identical": lambda z: z[:1].expand_as(z),
            "zero": torch.zeros_like,
            "shifted": lambda z: z + 100,
        }[change](x),
        y,
    )
    x, y = (z.to(dtype).requires_grad_() for z in (x, y))
    value = LOSSES[name](x, y)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [x, y]))


@losses
def test_autocast_does_not_narrow_a_loss(name: str) -> None:
    x, y = torch.randn(2, 40, 8)
    expected = LOSSES[name](x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOSSES[name](x, y), expected)


@losses
def test_dtypes_of_two_kinds_are_promoted(name: str) -> None:
    for n in (40, 3):
        x, y = torch.randn(2, n, 8)
        found = LOSSES[name](x.bfloat16(), y.double())
        torch.testing.assert_close(found, LOSSES[name](x.bfloat16().double(), y.double()))


def test_one_instance_has_no_variance() -> None:
    x, y = torch.randn(2, 1, 5)
    torch.testing.assert_close(F.vicreg(x, y), 25 * (x - y).square().mean() + 25 * 0.99)
    assert F.barlow_twins(x, y) == 5
    torch.testing.assert_close(F.spectral(x, y), -2 * (x * y).sum())
    assert F.koleo(x) == 0


def test_weights_of_the_parts() -> None:
    x, y = torch.randn(2, 9, 4).double()
    parts = ("invariance", "variance", "covariance")
    none = dict.fromkeys(parts, 0.0)
    total = sum(F.vicreg(x, y, **{**none, part: 2.0}) for part in parts)
    torch.testing.assert_close(total, F.vicreg(x, y, invariance=2, variance=2, covariance=2))
    on_diagonal = F.barlow_twins(x, y, redundancy=0)
    torch.testing.assert_close(
        F.barlow_twins(x, y, redundancy=1) - on_diagonal, 200 * (F.barlow_twins(x, y) - on_diagonal)
    )
    for call in (lambda: F.vicreg(x, y, variance=-1), lambda: F.barlow_twins(x, y, redundancy=float("nan"))):
        with pytest.raises(ValueError, match="must be at least 0"):
            call()


# ---- KoLeo


def test_both_points_of_a_distance_move(backend: str) -> None:
    """Of three points in a row the outer ones have the middle one as their neighbour, which has the nearer one."""
    angles = torch.tensor([0.0, 0.3, 0.7])
    x = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    terms = F.koleo(x, reduction="none", backend=backend)
    chords = 2 * torch.sin(torch.tensor([0.3, 0.3, 0.4]) / 2)
    torch.testing.assert_close(terms, -chords.log())
    (gradient,) = torch.autograd.grad(terms[2], x)
    assert gradient[2].any()
    assert gradient[1].any()
    assert not gradient[0].any()


def test_near_duplicates_keep_their_digits(backend: str) -> None:
    x = torch.eye(4, 16)
    x[1] = x[0]
    x[1, 5] = 1e-5  # their cosine is 1 in float32
    terms = F.koleo(x, reduction="none", backend=backend)
    torch.testing.assert_close(terms[:2].double(), formulas.koleo(x.double())[:2], rtol=1e-6, atol=0)


def test_duplicates_and_lengths(backend: str) -> None:
    x = torch.ones(3, 8).requires_grad_()
    value = F.koleo(x, backend=backend)
    torch.testing.assert_close(value, -torch.tensor(1e-8 * 8**0.5 + 1e-8).log())
    assert torch.autograd.grad(value, x)[0].isfinite().all()
    z = torch.randn(9, 4)
    torch.testing.assert_close(F.koleo(z * 2.0**80, backend=backend), F.koleo(z, backend=backend))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.koleo(x[0]), ValueError, "x must have shape"),
        (lambda x: F.koleo(x.long()), TypeError, "x must be floating point"),
        (lambda x: F.spectral(x, x[:3]), ValueError, "one and the same shape"),
        (lambda x: F.vicreg(x, x[:, :2]), ValueError, "features"),
        (lambda x: F.barlow_twins(x, x.long()), TypeError, "y must be floating point"),
        (lambda x: F.vicreg(x, x, covariance="1"), TypeError, "covariance must be a number"),
    ],
)
def test_bad_input(call: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.randn(4, 3))
