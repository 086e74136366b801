# SPDX-License-Identifier: Apache-2.0
"""SigLIP where an image has several texts: what ids change and what they do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

import pycl
import pycl.functional as F

N, D = 7, 5
BIAS = -2.0


@pytest.fixture
def pair() -> list[Tensor]:
    return [normalize(torch.randn(N, D), dim=1) for _ in range(2)]


@pytest.mark.parametrize("per_anchor", [False, True])
def test_the_own_pair_is_a_positive_whatever_the_ids(pair: list[Tensor], per_anchor: bool, backend: str) -> None:
    options = {"reduction": "none", "backend": backend}
    wanted = F.siglip(*pair, 10.0, BIAS, **options)
    for ids in (None, (torch.arange(N), torch.arange(N)), (torch.arange(N), torch.arange(N) + N)):
        found = F.siglip(*pair, 10.0, BIAS, ids=ids, per_anchor=per_anchor, **options)
        torch.testing.assert_close(found, wanted)


def test_one_id_for_all_leaves_no_negatives(pair: list[Tensor], backend: str) -> None:
    ids, options = (torch.full((N,), 3),) * 2, {"reduction": "none", "backend": backend}
    attraction = softplus(-(10.0 * pair[0] @ pair[1].T + BIAS))
    torch.testing.assert_close(F.siglip(*pair, 10.0, BIAS, ids=ids, **options), attraction.sum(1))
    torch.testing.assert_close(F.siglip(*pair, 10.0, BIAS, ids=ids, per_anchor=True, **options), attraction.mean(1))


def test_a_positive_that_costs_nothing_counts(backend: str) -> None:
    """Its softplus is 0 in float32: the number of positives is that of the pairs, not of the terms that are not 0."""
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    ids = torch.tensor([0, 1]), torch.tensor([0, 0])
    terms = F.siglip(image, text, 300.0, 0.0, ids=ids, per_anchor=True, reduction="none", backend=backend)
    attraction = softplus(-torch.tensor([[300.0, 300.0], [0.0, 0.0]]))
    expected = torch.stack([attraction[0].mean(), attraction[1, 1] + softplus(torch.tensor(0.0))])
    torch.testing.assert_close(terms, expected)


def test_the_module_takes_ids_with_the_batch(pair: list[Tensor]) -> None:
    ids = torch.arange(N) // 2, torch.arange(N) // 3
    found = pycl.SigLIPLoss(per_anchor=True)(*pair, 10.0, BIAS, ids)
    assert torch.equal(found, F.siglip(*pair, 10.0, BIAS, ids=ids, per_anchor=True))
    with pytest.raises(TypeError, match="ids"):
        pycl.SigLIPLoss(ids=ids)  # type: ignore[call-arg]
