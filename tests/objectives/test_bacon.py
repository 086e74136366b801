# SPDX-License-Identifier: Apache-2.0
"""Soft labels: the losses they become where labels are hard or absent, one view, many features, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.functional import nt_xent, sup_con
from pycl.objectives import soft_sup_con
from pycl.testing.objectives import OBJECTIVES

N, D = 10, 6
CLASSES = torch.tensor([0, 1, 2, 0, 1, 3, 0, 4, 4, 5])  # some met once
ONE_HOT = torch.nn.functional.one_hot(CLASSES, 6).double()


def same(found: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], n_views: int) -> None:
    views = torch.randn(n_views, N, D, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(found(views), expected(views))
    gradients = (torch.autograd.grad(function(views), views) for function in (found, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("n_views", [1, 2, 3])
def test_hard_labels_make_it_sup_con(n_views: int) -> None:
    same(lambda x: soft_sup_con(x, ONE_HOT), lambda x: sup_con(x, CLASSES), n_views)


@pytest.mark.parametrize("n_views", [2, 3])
def test_without_probabilities_it_is_nt_xent(n_views: int) -> None:
    same(lambda x: soft_sup_con(x, 0 * ONE_HOT), lambda x: nt_xent(x, temperature=0.07), n_views)


def test_one_view_without_any_weight_is_zero() -> None:
    views = torch.randn(1, N, D, requires_grad=True)
    value = soft_sup_con(views, torch.eye(N))
    assert value == 0
    assert not torch.autograd.grad(value, views)[0].any()


def test_small_weights_of_one_view_keep_their_digits() -> None:
    """They are differences: an instance's weight with itself is a million times larger here."""
    torch.manual_seed(0)
    views, probabilities = torch.randn(1, N, D), (torch.eye(N) + 1e-6 * torch.rand(N, N))
    (expected,) = OBJECTIVES["soft_sup_con"].truth(
        {"views": views.double(), "probabilities": probabilities.double()}, {"temperature": 0.07}
    )
    torch.testing.assert_close(soft_sup_con(views, probabilities).double(), expected, rtol=1e-5, atol=0)


def test_features_may_be_many(backend: str) -> None:
    if backend == "triton":
        pytest.skip("minutes in its interpreter")
    views, probabilities = torch.randn(2, 9, 65536, requires_grad=True), torch.rand(9, 4)
    scalars = {"temperature": 0.07}
    row, exact = OBJECTIVES["soft_sup_con"], views.detach().double().requires_grad_()
    (expected,) = row.truth({"views": exact, "probabilities": probabilities.double()}, scalars)
    found = soft_sup_con(views, probabilities, backend=backend)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    gradient, of_exact = torch.autograd.grad(found, views)[0], torch.autograd.grad(expected, exact)[0]
    torch.testing.assert_close(gradient.double(), of_exact, rtol=0, atol=1e-5 * of_exact.abs().max().item())


def test_a_temperature_of_another_dtype_leaves_the_values() -> None:
    views = torch.randn(2, N, D)
    value = soft_sup_con(views, ONE_HOT, temperature=torch.tensor(0.07, dtype=torch.float64))
    assert value.dtype == torch.float32


VIEWS = torch.randn(2, N, D)
BAD: list[tuple[Any, Tensor, type[Exception], str]] = [
    (VIEWS, ONE_HOT[:3], ValueError, r"probabilities must have shape \[10, C\]"),
    (VIEWS, CLASSES, TypeError, "probabilities must be floating point"),
    (VIEWS, ONE_HOT[:, 0], ValueError, "probabilities must have shape"),
    (VIEWS[0], ONE_HOT, ValueError, "views must be a"),
    (VIEWS[:, :0], ONE_HOT, ValueError, "views must hold at least one instance"),
    ((), ONE_HOT, ValueError, "views must hold at least two views"),
    ((VIEWS[0, 0],), ONE_HOT, ValueError, "views must have shape"),
]


@pytest.mark.parametrize(("views", "probabilities", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused(views: Any, probabilities: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        soft_sup_con(views, probabilities)
