# SPDX-License-Identifier: Apache-2.0
"""InfoNCE with negatives of each query's own and with label smoothing, in all combinations, and what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pycl.functional as F
from pycl.testing import formulas

pytestmark = pytest.mark.float64

N, M, D = 7, 4, 5
NEGATIVES: dict[str, tuple[int, ...] | None] = {
    "none": None,
    "shared": (M, D),
    "own": (N, M, D),
    "one of its own": (N, 1, D),
}
FORMS = [
    pytest.param(kind, options, id=f"{kind}, {''.join(options)}")
    for kind in NEGATIVES
    for options in ({}, {"in_batch": True}, {"symmetric": True})
    if kind == "none" or "symmetric" not in options
]


def make(kind: str) -> list[Tensor]:
    shapes = [(N, D), (N, D), NEGATIVES[kind]]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes if shape is not None]


@pytest.mark.parametrize(("kind", "options"), FORMS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_all_forms(kind: str, options: dict[str, Any], label_smoothing: float, backend: str) -> None:
    inputs, weights = make(kind), torch.randn(N, dtype=torch.float64)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    options = options | {"label_smoothing": label_smoothing, "temperature": temperature}
    if kind == "none" and "in_batch" in options:
        expected = formulas.info_nce(*inputs, temperature=temperature, label_smoothing=label_smoothing)
    else:
        expected = formulas.info_nce(*inputs, **options)
    found = F.info_nce(*inputs, **options, reduction="none", backend=backend)
    torch.testing.assert_close(found, expected)
    leaves = [*inputs, temperature]
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, weights), torch.autograd.grad(expected, leaves, weights)
    )
    for reduction in ("mean", "sum"):
        value = F.info_nce(*inputs, **options, reduction=reduction, backend=backend)
        torch.testing.assert_close(value, getattr(expected, reduction)())


@pytest.mark.parametrize("in_batch", [False, True])
def test_the_same_negatives_for_each_query_are_shared(in_batch: bool, backend: str) -> None:
    query, key, shared = make("shared")
    options = {"in_batch": in_batch, "reduction": "none", "backend": backend}
    own = F.info_nce(query, key, shared.expand(N, M, D), **options)
    torch.testing.assert_close(own, F.info_nce(query, key, shared, **options))


def test_shared_negatives_of_the_batch_are_keys_without_a_query(backend: str) -> None:
    query, key, shared = make("shared")
    found = F.info_nce(query, key, shared, in_batch=True, reduction="none", backend=backend)
    whole = F.info_nce(torch.cat([query, shared]), torch.cat([key, shared]), reduction="none", backend=backend)
    torch.testing.assert_close(found, whole[:N])


def test_without_a_positive_among_others_smoothing_adds_nothing(backend: str) -> None:
    """Where all candidates have one logit there is nothing to smooth."""
    point = torch.randn(1, D, dtype=torch.float64)
    x = point.expand(N, D)
    smooth = F.info_nce(x, x, label_smoothing=0.5, backend=backend)
    torch.testing.assert_close(smooth, torch.tensor(N, dtype=torch.float64).log())
