# SPDX-License-Identifier: Apache-2.0
"""CACR: identities of attraction and repulsion, edges, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from pycl.objectives import cacr, cacr_momentum
from pycl.testing.objectives.cacr import cacr as formula


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(normalize(x, dim=1), normalize(y, dim=1), compute_mode="donot_use_mm_for_euclid_dist").square()


def test_temperatures_of_zero_give_plain_means() -> None:
    views = batch(3, 7, 5)
    d = [distances(views[x], views[y]) for x in range(3) for y in range(3) if x < y]
    near = torch.stack([m.diagonal() for m in d]).mean()
    far = torch.stack([(m.sum() - m.trace()) / (7 * 6) for m in d]).mean()
    torch.testing.assert_close(cacr(views, tau_pos=0.0, tau_neg=0.0, alpha=2.0, beta=3.0), 2 * near - 3 * far)


def test_a_steep_temperature_takes_the_farthest_positive_and_the_nearest_negative() -> None:
    views = batch(3, 7, 5)
    of = {(x, y): distances(views[x], views[y]) for x in range(3) for y in range(3)}
    near = [torch.stack([of[x, y].diagonal() for y in range(3) if y != x]).amax(0) for x in range(3)]
    far = [of[x, y].fill_diagonal_(9.0).amin(1) for x, y in ((0, 1), (0, 2), (1, 2))]
    expected = torch.stack(near).mean() - torch.stack(far).mean()
    torch.testing.assert_close(cacr(views, tau_pos=1e5, tau_neg=1e5), expected)


def test_two_views_have_one_positive_and_tau_pos_does_not_matter() -> None:
    views, tau = batch(2, 6, 4), torch.tensor(1.0, requires_grad=True)
    value = cacr(views, tau_pos=tau)
    torch.testing.assert_close(value, cacr(views, tau_pos=30.0).to(value))
    assert torch.autograd.grad(value, tau)[0].abs() < 1e-12


def test_detached_weights_change_the_gradient_and_not_the_value() -> None:
    views = batch(3, 6, 4).requires_grad_()
    found = [cacr(views, detach_weights=detach) for detach in (False, True)]
    torch.testing.assert_close(*found)
    flowing, detached = (torch.autograd.grad(value, views)[0] for value in found)
    assert (flowing - detached).abs().max() > 1e-3
    expected = torch.autograd.grad(formula(views, detach_weights=True), views)[0]
    torch.testing.assert_close(detached, expected)


def test_detached_weights_give_their_temperatures_no_gradient() -> None:
    taus = {name: torch.tensor(0.7, dtype=torch.float64, requires_grad=True) for name in ("tau_pos", "tau_neg")}
    value = cacr(batch(3, 6, 4).requires_grad_(), detach_weights=True, **taus)
    found = torch.autograd.grad(value, list(taus.values()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in found)


@pytest.mark.parametrize("detach", [False, True])
def test_one_instance_has_no_repulsion(detach: bool) -> None:
    views = batch(2, 1, 4).requires_grad_()
    value = cacr(views, beta=100.0, detach_weights=detach)
    expected = distances(*views).sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, views)[0] for v in (value, expected)))


def test_a_zero_row_has_no_length() -> None:
    views = batch(3, 6, 4)
    views[0, 2] = views[1, 4] = views[2, 4] = 0.0
    torch.testing.assert_close(cacr(views), formula(views))


def test_positives_that_are_close_keep_their_digits() -> None:
    x = normalize(batch(8, 16), dim=1)
    views = torch.stack([x, x + 1e-5 * torch.randn_like(x)]).float()
    exact = distances(*views.double()).diagonal().mean()
    assert abs(cacr(views, beta=0.0).double() / exact - 1) < 0.01  # 2 - 2 s would be off by a hundred times as much


def test_momentum_weighs_the_farthest_view_most() -> None:
    keys = batch(9, 6)
    queries = torch.stack([keys + 0.1 * batch(9, 6), batch(9, 6)])
    u, k = normalize(queries, dim=-1), normalize(keys, dim=-1)
    terms = torch.stack([cross_entropy(q @ k.T / 1e-3, torch.arange(9), reduction="none") for q in u])
    farthest = (u - k).square().sum(2).argmax(0)
    expected = terms[farthest, torch.arange(9)].mean() * 2e-3
    torch.testing.assert_close(cacr_momentum(queries, keys, temperature=1e-3), expected)


def test_momentum_of_one_view_is_a_cross_entropy() -> None:
    q, k = batch(9, 6), batch(9, 6)
    logits = normalize(q, dim=1) @ normalize(k, dim=1).T / 0.3
    expected = 0.6 * cross_entropy(logits, torch.arange(9))
    torch.testing.assert_close(cacr_momentum(q[None], k, temperature=0.3), expected)
    torch.testing.assert_close(cacr_momentum([q], k, temperature=0.3), expected)


def test_momentum_of_one_instance_is_zero() -> None:
    queries = batch(2, 1, 4).requires_grad_()
    value = cacr_momentum(queries, batch(1, 4), temperature=0.1)
    assert value.abs() < 1e-12
    assert torch.autograd.grad(value, queries)[0].abs().max() < 1e-9


def test_products_are_not_autocast() -> None:
    views, keys = batch(2, 16, 32).float(), batch(16, 32).float()
    expected = cacr(views), cacr_momentum(views, keys)
    with torch.autocast("cpu", torch.bfloat16):
        found = cacr(views), cacr_momentum(views, keys)
    assert found == expected


@pytest.mark.parametrize("name", ["tau_pos", "tau_neg", "alpha", "beta"])
@pytest.mark.parametrize("value", [-0.5, float("inf"), float("nan")])
def test_a_negative_number_is_refused(name: str, value: float) -> None:
    for given in (value, torch.tensor(value)):
        with pytest.raises(ValueError, match=f"{name} must be at least 0 and finite"):
            cacr(batch(2, 4, 3), **{name: given})


@pytest.mark.parametrize(
    ("queries", "keys", "error", "message"),
    [
        (batch(4, 3), batch(4, 3), ValueError, r"queries must have shape \[V, N, d\]"),
        (batch(0, 4, 3), batch(4, 3), ValueError, r"queries must have shape \[V, N, d\]"),
        ([], batch(4, 3), ValueError, "at least one view"),
        ([batch(4, 3), batch(5, 3)], batch(4, 3), ValueError, "one and the same shape"),
        (batch(2, 4, 3), batch(5, 3), ValueError, r"keys must have shape \[4, 3\]"),
        (batch(2, 4, 3), batch(4, 2), ValueError, "keys must have 3 features"),
        (batch(2, 4, 3), "keys", TypeError, "keys must be a tensor"),
        (batch(2, 4, 3).long(), batch(4, 3), TypeError, "queries must be floating point"),
    ],
)
def test_momentum_refuses(queries: Any, keys: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cacr_momentum(queries, keys)


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two views"):
        cacr(batch(1, 4, 3))
