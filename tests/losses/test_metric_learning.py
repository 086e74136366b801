# SPDX-License-Identifier: Apache-2.0
"""Multi-similarity and circle: values of pytorch-metric-learning, empty sets, the mean over terms that count."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pycl.functional as F
from pycl.testing import formulas

LOSSES = {"multi_similarity": F.multi_similarity, "circle": F.circle}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
Z = torch.linspace(-2, 3, 28).double().view(7, 4).sin()
LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 3])


@pytest.mark.parametrize(
    ("name", "value", "gradient"),
    [
        ("multi_similarity", 0.9839030691662873, 0.9260752822406659),
        ("circle", 163.36312245819963, 179.80407335717788),
    ],
)
def test_values_of_pytorch_metric_learning(name: str, value: float, gradient: float) -> None:
    """Of its version 2.9.0, with rows of lengths 0.5 to 2: the value, and the norm of the gradient."""
    z = torch.linspace(-2, 3, 28, dtype=torch.float64).view(7, 4).sin()
    z = (z * torch.linspace(0.5, 2, 7, dtype=torch.float64)[:, None]).requires_grad_()
    found = LOSSES[name](z, LABELS)
    torch.testing.assert_close(found.item(), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, z)[0].norm().item(), gradient, rtol=1e-10, atol=0)


@losses
@pytest.mark.parametrize("labels", [torch.zeros(7).long(), torch.arange(7)], ids=["one_class", "all_different"])
def test_empty_sets(loss: Callable[..., Tensor], labels: Tensor, backend: str) -> None:
    z = Z.float().requires_grad_()
    found = loss(z, labels, backend=backend, reduction="none")
    expected = getattr(formulas, loss.__name__)(Z, labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(found.sum(), z)[0].isfinite().all()
    if loss is F.circle:
        assert not found.any()
        assert F.circle(z, labels) == 0
        assert not torch.autograd.grad(F.circle(z, labels), z)[0].any()


def test_the_mean_of_circle_runs_over_terms_that_are_not_0() -> None:
    terms = F.circle(Z, LABELS, reduction="none")
    assert (terms > 0).tolist() == [True] * 5 + [False] * 2
    torch.testing.assert_close(F.circle(Z, LABELS), terms.sum() / 5)
    torch.testing.assert_close(F.multi_similarity(Z, LABELS), F.multi_similarity(Z, LABELS, reduction="none").mean())


@pytest.mark.parametrize("n_classes", [2, 40, 299])
def test_circle_on_several_strips(n_classes: int) -> None:
    """Labels in any order: strips of many classes, and classes of many strips."""
    n, rows = 300, sys.modules["pycl.functional.circle"].ROWS
    assert n > 2 * rows
    z, labels = torch.randn(n, 6).double().requires_grad_(), torch.randint(0, n_classes, (n,))
    found, expected = F.circle(z, labels, reduction="none"), formulas.circle(z, labels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.rand(n).double()
    gradients = [torch.autograd.grad(terms, z, weights)[0] for terms in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)
    mean = expected.sum() / (expected > 0).sum()
    torch.testing.assert_close(
        torch.autograd.grad(3 * F.circle(z, labels), z)[0],
        torch.autograd.grad(3 * formulas.circle(z, labels).sum() / (expected > 0).sum(), z)[0],
        rtol=1e-11,
        atol=1e-11,
    )
    torch.testing.assert_close(F.circle(z, labels), mean)


def test_a_second_derivative_of_circle_is_refused() -> None:
    z = Z.clone().requires_grad_()
    for value in (F.circle(z, LABELS), F.circle(z, LABELS, reduction="none").sum()):
        (gradient,) = torch.autograd.grad(value, z, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            gradient.sum().backward()


@losses
@pytest.mark.parametrize(
    ("z", "labels", "error", "message"),
    [
        (Z[0], LABELS, ValueError, "z must have shape"),
        (Z.long(), LABELS, TypeError, "z must be floating point"),
        (Z, LABELS[:3], ValueError, r"labels must have shape \[7\]"),
        (Z, LABELS.float(), TypeError, "labels must be an integer tensor"),
        (Z, LABELS.tolist(), TypeError, "labels must be an integer tensor"),
    ],
    ids=["vector", "integers", "few", "floats", "list"],
)
def test_bad_input(loss: Callable[..., Tensor], z: Any, labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loss(z, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.multi_similarity(Z, LABELS, alpha=0.0), "alpha must be positive"),
        (lambda: F.multi_similarity(Z, LABELS, beta=-1.0), "beta must be positive"),
        (lambda: F.multi_similarity(Z, LABELS, base=torch.ones(2)), "base must be a number"),
        (lambda: F.circle(Z, LABELS, margin=-0.1), "margin must be at least 0"),
        (lambda: F.circle(Z, LABELS, gamma=0.0), "gamma must be"),
    ],
)
def test_bad_numbers(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
