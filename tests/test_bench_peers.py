# SPDX-License-Identifier: Apache-2.0
"""The peers of the suite "gpu": what is not installed says so, and each adapter computes the loss it is timed for."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from pycl.bench import losses, peers, rows, sinkhorn, truth
from pycl.bench.work import Function, step_of
from torch import Tensor


def test_absent_peers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Function:
        raise ImportError("libfoo.so is missing")

    absent = peers.Peer("absent", "no-such-distribution-of-anyone", "clip", breaks)
    broken = peers.Peer("broken", "torch", "clip", breaks)
    found = {one.peer.name: one for one in peers.find([absent, broken])}
    assert found["absent"][1:] == (None, None, "not installed")
    assert found["broken"].why_not == "cannot be used: ImportError: libfoo.so is missing"
    assert found["broken"].version == torch.__version__


def cross_entropy(query: Tensor, key: Tensor, own: Tensor, **options: Any) -> Tensor:
    assert options in ({}, {"filter_eps": None}, {"head_dim": 256}), "arguments the peer does not have, or its defaults"
    reduction = "none" if "head_dim" in options else "mean"  # inf-cl returns a loss for every row
    return torch.nn.functional.cross_entropy(query @ key.T, own, reduction=reduction)


def lightly_codes(out: Tensor, iterations: int, epsilon: float) -> Tensor:
    assert (iterations, epsilon) == (sinkhorn.ITERATIONS, sinkhorn.EPSILON)
    return sinkhorn.published(out)


def name_of(peer: peers.Peer) -> str:
    return peer.name if peer.loss in losses.LOSSES else f"{peer.name}-{peer.loss}"


FAKES = {
    "inf-cl": ("inf_cl", "cal_flash_loss", cross_entropy),
    "cut-cross-entropy": ("cut_cross_entropy", "linear_cross_entropy", cross_entropy),
    "liger-kernel": ("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy", cross_entropy),
    "open_clip": ("open_clip.loss", "ClipLoss", lambda **_: lambda x, y, scale: losses.dense_clip(x, y)),
    "lightly": ("lightly.loss", "NTXentLoss", lambda **_: losses.dense_nt_xent),
    **dict.fromkeys(
        ("lightly-sinkhorn", "lightly-sinkhorn, out="), ("lightly.loss.swav_loss", "sinkhorn", lightly_codes)
    ),
}


@pytest.mark.parametrize("peer", peers.PEERS, ids=name_of)
def test_peers_compute_the_loss(peer: peers.Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    if name_of(peer) in FAKES:
        path, name, function = FAKES[name_of(peer)]
        parts = path.split(".")
        for i in range(len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), ModuleType(".".join(parts[: i + 1])))
        monkeypatch.setattr(sys.modules[path], name, function, raising=False)
    elif not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no F.linear_cross_entropy")
    inputs = rows.WORKS[peer.loss].inputs(64, 512, torch.float32)
    got = step_of(peer.load(), inputs)()
    for mine, want in zip(got, truth.expected(peer.loss, inputs), strict=True):
        torch.testing.assert_close(mine.double(), want, rtol=1e-4, atol=1e-6)
