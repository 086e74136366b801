# SPDX-License-Identifier: Apache-2.0
"""AMCL: which negatives it takes, edges, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pycl.objectives import PairTemperature, amcl
from pycl.objectives.amcl import SWEEPS


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def constant(t: float) -> Any:
    return lambda a, b: torch.full((len(a),), t, dtype=a.dtype)


@pytest.mark.parametrize("top", [1, 2, SWEEPS, SWEEPS + 1, 20])
def test_the_largest_cosines_count(top: int, backend: str) -> None:
    heads = batch(3, 2, 9, 6)
    u = normalize(heads, dim=-1)
    cosine = u[:, 0] @ u[:, 1].mT
    hardest = cosine.masked_fill(torch.eye(9, dtype=torch.bool), -9).sort(descending=True).values[..., : min(top, 8)]
    expected = (hardest.mean((1, 2)) - cosine.diagonal(dim1=1, dim2=2).mean(1)).sum() / 0.5  # Omega cancels
    found = amcl(heads.float() if backend == "triton" else heads, constant(0.5), top=top, backend=backend)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top", [1, 3, SWEEPS + 1])
def test_equal_negatives_each_count(top: int) -> None:
    """They are chosen by the lowest index, and none of them twice."""
    heads, seen = torch.eye(8, dtype=torch.float64).expand(1, 2, 8, 8), []  # cosines of others are all 0

    def temperature(a: Tensor, b: Tensor) -> Tensor:
        seen.append(b)
        return b.new_ones(len(b))

    amcl(heads, temperature, top=top)
    chosen = seen[0].view(8, 1 + top, 8).argmax(2)
    assert chosen.tolist() == [[i, *[j for j in range(8) if j != i][:top]] for i in range(8)]


def test_the_temperature_sees_unit_vectors_once_a_head() -> None:
    heads, seen = batch(2, 2, 5, 3), []

    def temperature(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a, b))
        return a.new_ones(len(a))

    amcl(heads, temperature)
    assert [a.shape for a, _ in seen] == [(10, 3), (10, 3)]
    for pair in seen:
        for x in pair:
            torch.testing.assert_close(x.norm(dim=1), torch.ones(10, dtype=torch.float64))


def test_omega_pulls_the_two_temperatures_apart() -> None:
    """The derivatives for tp and tn, which the constant cosines of equal rows give by hand."""
    heads, own, other = torch.ones(1, 2, 2, 4, dtype=torch.float64), *(torch.tensor(t).double() for t in (0.5, 0.25))
    temperatures = [t.requires_grad_() for t in (own, other)]
    value = amcl(heads, lambda a, b: torch.stack([own, other]).repeat(2), beta=0.3)
    omega = [2 * math.log(t) + 1 / t for t in (0.5, 0.25)]
    assert math.isclose(value.item(), -2 + 4 + 0.3 * (omega[0] - omega[1]))
    found = torch.autograd.grad(value, temperatures)
    by_hand = 4 + 0.3 * (4 - 4), -16 - 0.3 * (8 - 16)
    torch.testing.assert_close(torch.stack(found), torch.tensor(by_hand, dtype=torch.float64))


def test_one_instance_has_no_negatives() -> None:
    heads = batch(2, 2, 1, 4)
    u = normalize(heads, dim=-1)
    expected = (-(u[:, 0] * u[:, 1]).sum(-1) / 0.5 + 0.1 * (2 * math.log(0.5) + 2)).sum()
    torch.testing.assert_close(amcl(heads, constant(0.5), top=3), expected)


def test_networks_and_rows_without_length_are_finite() -> None:
    for dtype in (torch.float16, torch.float32):
        heads = batch(2, 2, 6, 4).to(dtype)
        heads[:, :, 2] = 0.0
        network = PairTemperature(4, 8)
        value = amcl(heads.requires_grad_(), network)
        found = torch.autograd.grad(value, [heads, *network.parameters()])
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in found)


def test_products_are_not_autocast() -> None:
    heads, network = batch(2, 2, 16, 32).float(), PairTemperature(32)
    expected = amcl(heads, network)
    with torch.autocast("cpu", torch.bfloat16):
        assert amcl(heads, network) == expected


def test_a_temperature_lies_between_its_bounds() -> None:
    network = PairTemperature(3, 5, low=0.2, high=0.7)
    assert [tuple(p.shape) for p in network.parameters()] == [(5, 6), (5,), (1, 5), (1,)]
    w1, b1, w2, b2 = network.parameters()
    a, b = torch.randn(2, 11, 3)
    expected = 0.2 + 0.5 * torch.sigmoid(torch.relu(torch.cat([a, b], 1) @ w1.T + b1) @ w2[0] + b2)
    torch.testing.assert_close(network(a, b), expected)
    far = network(1e6 * a, 1e6 * b)
    assert ((far >= 0.2) & (far <= 0.7)).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"dim": 4, "hidden": 2.5}, TypeError, "hidden must be an integer"),
        ({"dim": 4, "low": 0.0}, ValueError, "0 < low < high"),
        ({"dim": 4, "low": 2.0}, ValueError, "0 < low < high"),
        ({"dim": 4, "high": math.inf}, ValueError, "0 < low < high"),
    ],
)
def test_a_temperature_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PairTemperature(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"heads": batch(2, 4, 3)}, ValueError, r"heads must have shape \[C, 2, N, d\]"),
        ({"heads": batch(2, 3, 4, 3)}, ValueError, r"heads must have shape \[C, 2, N, d\]"),
        ({"heads": batch(2, 2, 0, 3)}, ValueError, r"heads must have shape \[C, 2, N, d\]"),
        ({"heads": batch(2, 2, 4, 3).long()}, TypeError, "heads must be floating point"),
        ({"temperature": 0.5}, TypeError, "temperature must be a function"),
        ({"temperature": [constant(0.5), 0.5]}, TypeError, "temperature must be a function"),
        ({"temperature": [constant(0.5)]}, ValueError, "as many as there are heads, 2, got 1"),
        ({"temperature": nn.ModuleList([PairTemperature(3)])}, ValueError, "as many as there are heads, 2, got 1"),
        ({"temperature": lambda a, b: a[:, :1]}, ValueError, r"one number for each of \[8\] pairs, got \(8, 1\)"),
        ({"beta": -0.1}, ValueError, "beta must be at least 0"),
        ({"top": 0}, ValueError, "top must be at least 1"),
        ({"top": 1.5}, TypeError, "top must be an integer"),
    ],
)
def test_amcl_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        amcl(**{"heads": batch(2, 2, 4, 3), "temperature": constant(0.5), **changes})
