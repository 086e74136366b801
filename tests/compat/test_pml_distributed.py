# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.pml's losses in pytorch-metric-learning's DistributedLossWrapper, on two processes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers.spawn import on_ranks
from parity import embeddings, peer
from torch import Tensor

from pycl.compat import FallbackWarning
from pycl.compat.pml import losses as ours

N, D = 6, 4
LABELS = torch.tensor([0, 1, 0, 2, 1, 3, 2, 0, 4, 3, 3, 1])
KINDS = ["batch", "references", "queue"]


def steps(rank: int, module: Any, name: str, kind: str, efficient: bool) -> list[Tensor]:
    """Losses and gradients of two steps."""
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    torch.manual_seed(0)
    loss = module.ArcFaceLoss(5, D, scale=8).double() if name == "ArcFaceLoss" else getattr(module, name)()
    if kind == "queue":
        loss = module.CrossBatchMemory(loss, D, 20)
    wrapped = DistributedLossWrapper(loss, efficient=efficient)
    results = []
    for step in range(2):
        z = embeddings(N, D, 1 + rank + 2 * step).requires_grad_()
        refs = embeddings(N + 1, D, 7 + rank).requires_grad_()
        labels = LABELS[rank * N : (rank + 1) * N].roll(step)
        # reference i has the label of anchor i: efficient=True takes the two for one point
        ref_labels = torch.cat([labels, labels.new_tensor([rank])])
        loss = wrapped(z, labels, ref_emb=refs, ref_labels=ref_labels) if kind == "references" else wrapped(z, labels)
        loss.backward()
        results += [loss.detach(), z.grad]
        if kind == "references":
            results.append(refs.grad)
    return results


def both(rank: int, world: int, cases: list[tuple[str, str, bool]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    from pytorch_metric_learning import losses as theirs

    found = []
    for case in cases:
        expected = steps(rank, theirs, *case)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            found.append((steps(rank, ours, *case), expected))
    return found


def test_distributed_loss_wrapper() -> None:
    peer("pytorch_metric_learning.losses")
    names = "NTXentLoss", "SupConLoss", "MultiSimilarityLoss"
    cases = [(name, kind, efficient) for name in names for kind in KINDS for efficient in (0, 1)]
    cases = [case for case in cases if case[1:] != ("queue", 1)]  # the wrapper refuses these
    cases += [("NCALoss", "batch", 0), ("ArcFaceLoss", "batch", 0)]
    for of_rank in on_ranks(2, both, cases):
        for case, (mine, expected) in zip(cases, of_rank, strict=True):
            assert len(mine) == len(expected) >= 4
            for a, b in zip(mine, expected, strict=True):
                assert b.any(), case
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda m, case=case: f"{case}: {m}")


def test_what_the_wrapper_takes() -> None:
    peer("pytorch_metric_learning.losses")
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    queue = ours.CrossBatchMemory(ours.NTXentLoss(), D)
    for loss in (ours.NTXentLoss(), ours.SupConLoss(), queue):
        assert DistributedLossWrapper(loss).loss is loss
    with pytest.raises(ValueError, match="efficient"):
        DistributedLossWrapper(queue, efficient=True)
