# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.lightly against lightly on two ranks: on each the same loss and the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.spawn import on_ranks
from lightly_cases import MODULE, lopsided, loss_of, masked, pair, scores, swav
from parity import Case, assert_same, declare_torchvision, embeddings, measure, peer
from torch import Tensor
from torch.nn.functional import normalize

declare_torchvision()

from pycl.compat import lightly as ours  # noqa: E402


def on_two(rank: int, world: int) -> dict[str, list[dict[str, Any]]]:
    """Value and gradients on this rank of both libraries' losses, of different samples on each rank."""
    found = {}
    for name, case in DISTRIBUTED.items():
        inputs = tuple(x.roll(rank, 0) * (1 + 0.3 * rank) + 0.1 * rank * x.flip(1) for x in case.inputs)
        found[name] = [measure(Case(case.run, inputs), module) for module in (ours, peer(MODULE))]
    return found


def bank_of_all(module: Any, out0: Tensor, out1: Tensor) -> Tensor:
    loss = module.NTXentLoss(0.2, (11, out0.shape[1]), gather_distributed=True).to(out0.dtype)
    loss.memory_bank.bank.copy_(normalize(embeddings(11, out0.shape[1], 7, out0.dtype), dim=1))
    return torch.stack([loss(out0, out1 + k) for k in range(3)]).sum()


DISTRIBUTED: dict[str, Case] = {
    "NTXentLoss": Case(loss_of("NTXentLoss", 0.3, gather_distributed=True), pair(5, 4)),
    "NTXentLoss not gathering": Case(loss_of("NTXentLoss", 0.3), pair(5, 4)),
    "NTXentLoss bank": Case(bank_of_all, pair(4, 3)),
    "DirectCLRLoss": Case(loss_of("DirectCLRLoss", 3, 0.3, gather_distributed=True), pair(5, 4)),
    "MACLLoss": Case(loss_of("MACLLoss", 0.3), pair(5, 4)),
    "MSNLoss": Case(loss_of("MSNLoss", 0.3, gather_distributed=True), masked(2, 3, 7)),
    "MSNLoss not gathering": Case(loss_of("MSNLoss", 0.3), masked(2, 3, 7)),
    "DCLLoss": Case(loss_of("DCLLoss", 0.3, gather_distributed=True), pair(5, 4)),
    "DCLLoss weighted": Case(loss_of("DCLLoss", 0.3, lopsided, True), pair(5, 4)),
    "DCLWLoss": Case(loss_of("DCLWLoss", 0.3, gather_distributed=True), pair(5, 4)),
    "SwaVLoss": Case(swav(2, 1, 2, sinkhorn_gather_distributed=True), scores(6, 6, 6, 3, 3)),
    "SwaVLoss not gathering": Case(swav(2, 1), scores(6, 6, 6)),
}


@pytest.fixture(scope="module")
def of_ranks() -> list[dict[str, Any]]:
    peer(MODULE)
    return on_ranks(2, on_two, seconds=120)


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_two_ranks(name: str, of_ranks: list[dict[str, Any]]) -> None:
    for found in of_ranks:
        assert_same(*found[name], 1e-6)
