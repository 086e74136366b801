# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.pml with and without the library: extremes, copies, what is kept for backward, and time."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch
from parity import embeddings
from torch import Tensor

from pycl.compat.pml import losses as ours

PAIR_LOSSES = ["NTXentLoss", "SupConLoss"]
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
Z = embeddings(10, 4, 1)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_zero_has_a_graph(name: str) -> None:
    z = Z.clone().requires_grad_()
    loss = getattr(ours, name)()(z, torch.arange(10))
    loss.backward()
    assert float(loss.detach()) == 0
    assert z.grad is not None
    assert not z.grad.any()


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize(
    "labels", [LABELS, torch.arange(5).repeat(2), torch.arange(10) // 9], ids=["classes", "pairs", "one apart"]
)
def test_extremes_are_finite(name: str, labels: Tensor) -> None:
    for z in (Z.float() * 1e30, Z.float() * 1e-30, Z.float() * 0, Z[:1].repeat(10, 1).float(), -Z.half() * 6e4):
        x = z.clone().requires_grad_()
        for temperature in (1e-3, 1e3):
            loss = getattr(ours, name)(temperature)(x, labels)
            loss.backward()
            assert loss.isfinite()
            assert x.grad is not None
            assert x.grad.isfinite().all()


def test_pickle_and_copy() -> None:
    loss = ours.NTXentLoss(0.3)
    expected = loss(Z, LABELS)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(other) is ours.NTXentLoss
        torch.testing.assert_close(other(Z, LABELS), expected)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_no_matrix_is_kept(name: str) -> None:
    n, d = 1024, 16
    saved: list[int] = []
    z = embeddings(n, d, 1, torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        getattr(ours, name)()(z, torch.arange(n) % 10)
    assert max(saved) <= n * d


def test_2048_rows_in_under_a_second() -> None:
    """68 GB in the library: a row of 4,092 negatives for each of 2,048 positive pairs, before any intermediate."""
    z = torch.sin(torch.arange(2048 * 128, dtype=torch.float32) * 1.37).view(2048, 128).requires_grad_()
    loss, labels = ours.NTXentLoss(), torch.arange(1024).repeat(2)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        loss(z, labels).backward()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_small_terms_are_accurate() -> None:
    """Pairs in 256 directions: terms of 3e-7 beside similarities of 20, which float32 rounds to 2e-6."""
    ids = torch.arange(512) // 2
    z = torch.eye(256)[ids] + 0.025 * torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    found, expected = (ours.SupConLoss(0.04)(x, ids) for x in (z, z.double()))
    assert 2e-7 < expected < 5e-7
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)
