# SPDX-License-Identifier: Apache-2.0
"""Any loss on prefixes of the features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import pycl.functional as F

VIEWS = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(7) // 2


def test_it_is_the_sum_over_prefixes() -> None:
    views = VIEWS.clone().requires_grad_()
    found = F.matryoshka(F.nt_xent, views, dims=(3, 8, 12), weights=(2, 0.5, 1))
    expected = sum(w * F.nt_xent(views[..., :d]) for d, w in ((3, 2.0), (8, 0.5), (12, 1.0)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, views), torch.autograd.grad(expected, views))


def test_prefixes_are_normalised_for_a_loss_that_takes_features_as_they_are() -> None:
    found = F.matryoshka(lambda x, y: (x * y).sum(1), VIEWS[0], VIEWS[1], dims=[1, 5])
    expected = sum((normalize(VIEWS[0, :, :d]) * normalize(VIEWS[1, :, :d])).sum(1) for d in (1, 5))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("loss", "views"),
    [
        (F.info_nce, (VIEWS[0], VIEWS[1])),
        (F.nt_xent, ((VIEWS[0], VIEWS[1]),)),
        (F.sup_con, (VIEWS, LABELS)),
        (partial(F.clip, logit_scale=10.0), (normalize(VIEWS[0]), normalize(VIEWS[1]))),
        (F.koleo, (VIEWS[0],)),
    ],
    ids=["two", "sequence", "labels", "options", "one"],
)
def test_the_whole_is_the_loss_of_unit_vectors(loss: Callable[..., Tensor], views: tuple[Any, ...]) -> None:
    torch.testing.assert_close(F.matryoshka(loss, *views, dims=[12]), loss(*views))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_widened_before_they_are_normalised(dtype: torch.dtype) -> None:
    views = VIEWS.to(dtype).requires_grad_()
    found = F.matryoshka(F.mv_dhel, views, dims=(4, 12))
    assert found.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found, views)
    assert gradient.dtype == dtype
    wide = views.detach().double()
    torch.testing.assert_close(found, F.matryoshka(F.mv_dhel, wide, dims=(4, 12)).float())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dims": []}, ValueError, "dims must be a sequence of one length or more"),
        ({"dims": 4}, ValueError, "dims"),
        ({"dims": [0]}, ValueError, "dims must be at least 1"),
        ({"dims": [4, 13]}, ValueError, "dims must be at most the number of features, 12, got 13"),
        ({"dims": [2.0]}, TypeError, "dims must be an integer"),
        ({"dims": [2, 4], "weights": [1.0]}, ValueError, "weights must be as many as dims, 2, got 1"),
        ({"dims": [2], "weights": ["1"]}, TypeError, "weights must be a number"),
        ({"dims": [2], "weights": [float("nan")]}, ValueError, "weights"),
    ],
    ids=str,
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.matryoshka(F.nt_xent, VIEWS, **options)


def test_bad_losses_and_views() -> None:
    with pytest.raises(TypeError, match="loss must be a function"):
        F.matryoshka(VIEWS, dims=[2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="views must hold an embedding"):
        F.matryoshka(F.nt_xent, LABELS, dims=[2])
