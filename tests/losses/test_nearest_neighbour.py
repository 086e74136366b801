# SPDX-License-Identifier: Apache-2.0
"""NNCLR: whose neighbours count, what is a constant, bad input."""

from __future__ import annotations

import pytest
import torch

import pycl.functional as F

Q, K = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_queue_of_the_queries_is_info_nce() -> None:
    order = torch.randperm(8)
    torch.testing.assert_close(F.nearest_neighbour_nce(Q, K, 3 * Q[order]), F.info_nce(Q, K))


def test_only_keys_and_temperature_get_a_gradient(backend: str) -> None:
    q, k, queue = (x.float().requires_grad_() for x in (Q, K, torch.randn(20, 5)))
    temperature = torch.tensor(0.2, requires_grad=True)
    value = F.nearest_neighbour_nce(q, k, queue, temperature=temperature, backend=backend)
    found = torch.autograd.grad(value, [q, k, queue, temperature], allow_unused=True)
    assert [g is not None for g in found] == [False, True, False, True]
    assert found[1].abs().max() > 0


def test_of_equal_neighbours_the_first_is_taken() -> None:
    queue = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    query = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)  # the second: both of cosine 0
    found = F.nearest_neighbour_nce(query, query, queue, temperature=1.0, normalize=False, reduction="none")
    s = queue[torch.tensor([2, 1])] @ query.T  # without a normalisation the third is nearer
    torch.testing.assert_close(found, s.logsumexp(1) - s.diagonal())


@pytest.mark.parametrize(
    ("queue", "error", "message"),
    [
        (torch.randn(4, 3), ValueError, "queue must have 5 features"),
        (torch.randn(0, 5), ValueError, "queue must have shape"),
        (torch.ones(4, 5).long(), TypeError, "queue must be floating point"),
    ],
)
def test_bad_input(queue: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.nearest_neighbour_nce(Q, K, queue)
