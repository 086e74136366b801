# SPDX-License-Identifier: Apache-2.0
"""pytorch-metric-learning's own trainer on handwritten digits, with the import of the losses changed and no more."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from parity import peer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pycl.compat import FallbackWarning
from pycl.compat.pml import losses as ours

TRAINED = {
    "NTXentLoss": lambda losses: losses.NTXentLoss(temperature=0.1),
    "SupConLoss": lambda losses: losses.SupConLoss(),
    "CrossBatchMemory": lambda losses: losses.CrossBatchMemory(losses.NTXentLoss(), 16, memory_size=80),
}


def digits() -> tuple[Tensor, Tensor]:
    load = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    return torch.tensor(load[0][:320] / 16, dtype=torch.float32), torch.tensor(load[1][:320])


def trained(loss: Any, steps: int = 6) -> tuple[list[float], Tensor]:
    """The losses of some steps and the embeddings after them."""
    from pytorch_metric_learning import trainers

    found: list[float] = []
    images, labels = digits()
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    trainer = trainers.MetricLossOnly(
        {"trunk": trunk},
        {"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=32,
        loss_funcs={"metric_loss": loss},
        dataset=TensorDataset(images, labels),
        data_device=torch.device("cpu"),
        iterations_per_epoch=steps,
        dataloader_num_workers=0,
        end_of_iteration_hook=lambda t: found.append(float(t.losses["metric_loss"].detach())),
    )
    trainer.train(num_epochs=1)
    return found, trunk(images).detach()


@pytest.mark.parametrize("name", TRAINED)
def test_metric_loss_only(name: str) -> None:
    theirs = peer("pytorch_metric_learning.losses")
    expected, embeddings = trained(TRAINED[name](theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        found, mine = trained(TRAINED[name](ours))
    assert len(found) == 6
    assert found[-1] < found[0] or name == "CrossBatchMemory"  # whose queue fills meanwhile
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0)
    torch.testing.assert_close(mine, embeddings, rtol=1e-3, atol=1e-4)
