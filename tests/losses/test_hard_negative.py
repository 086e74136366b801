# SPDX-License-Identifier: Apache-2.0
"""Hard negatives and the debiased loss: limits, the clamp, overflow, bad input."""

from __future__ import annotations

import pytest
import torch

import pycl.functional as F

VIEWS = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_without_weights_and_correction_it_is_nt_xent(backend: str) -> None:
    views = VIEWS.float()
    found = F.hard_negative_nce(views, beta=0, reduction="none", backend=backend)
    torch.testing.assert_close(found, F.nt_xent(views, reduction="none", backend=backend))


def test_the_steepest_weights_leave_the_hardest_negative() -> None:
    found = F.hard_negative_nce(VIEWS, temperature=0.5, beta=1e4, reduction="none")
    u = torch.nn.functional.normalize(VIEWS.flatten(0, 1), dim=1)
    s = u @ u.T / 0.5
    s[(torch.arange(18)[:, None] - torch.arange(18)) % 9 == 0] = -torch.inf
    positive = (u[:9] * u[9:]).sum(1).repeat(2) / 0.5
    hardest = torch.log(positive.exp() + 16 * s.amax(1).exp()) - positive
    torch.testing.assert_close(found.flatten(), hardest, rtol=1e-3, atol=1e-3)


def test_a_clamped_row_has_no_gradient_through_its_negatives() -> None:
    """Both views are equal and all others orthogonal: the correction is more than all negatives have."""
    z = torch.eye(4, dtype=torch.float64)
    views = torch.stack([z, z]).requires_grad_()
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    terms = F.hard_negative_nce(views, temperature=temperature, tau_plus=0.5, normalize=False, reduction="none")
    expected = torch.log(1 + 6 * torch.exp(-2 / temperature))  # log(e^p + M e^(-1/T)) - p with p = 1/T
    torch.testing.assert_close(terms, expected.expand(2, 4))
    gradients = torch.autograd.grad(terms[0, 0], [views, temperature], retain_graph=True)
    pull = torch.sigmoid(-(2 / temperature - torch.tensor(6.0).log())).item()  # of the positive alone
    torch.testing.assert_close(gradients[0][0, 0], -2 * pull * z[0])
    torch.testing.assert_close(gradients[0][1, 0], -2 * pull * z[0])
    assert not gradients[0][:, 1:].any()
    torch.testing.assert_close(gradients[1], torch.autograd.grad(expected, temperature)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_overflows_as_an_exponential_is_finite(dtype: torch.dtype) -> None:
    views = VIEWS.to(dtype).requires_grad_()
    value = F.hard_negative_nce(views, temperature=0.01, beta=3.0, tau_plus=0.1)
    assert value.isfinite()
    assert torch.autograd.grad(value, views)[0].isfinite().all()


def test_one_instance_is_0_without_a_gradient() -> None:
    views = VIEWS[:, :1].clone().requires_grad_()
    for options in ({}, {"beta": 0.0}, {"tau_plus": 0.1}):
        value = F.hard_negative_nce(views, **options)
        assert value == 0
        assert not torch.autograd.grad(value, views)[0].any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": -0.1}, ValueError, "beta must be at least 0"),
        ({"beta": float("inf")}, ValueError, "beta"),
        ({"beta": float("nan")}, ValueError, "beta"),
        ({"beta": "1"}, TypeError, "beta must be a number"),
        ({"tau_plus": 1.0}, ValueError, "tau_plus must be at least 0 and less than 1, got 1"),
        ({"tau_plus": -0.1}, ValueError, "tau_plus"),
        ({"tau_plus": True}, TypeError, "tau_plus"),
    ],
    ids=str,
)
def test_bad_input(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.hard_negative_nce(VIEWS, **options)  # type: ignore[arg-type]
