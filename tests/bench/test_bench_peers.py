# SPDX-License-Identifier: Apache-2.0
"""The peers of the suite "gpu": what is not installed says so, and each adapter computes the loss it is timed for."""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.bench.workloads import baselines, dense, float64_reference, losses, sinkhorn
from pycl.bench.workloads.registry import WORKLOADS
from pycl.bench.workloads.workload import Function, step_of


def test_absent_peers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Function:
        raise ImportError("libfoo.so is missing")

    absent = baselines.Peer("absent", "no-such-distribution-of-anyone", "clip", breaks)
    broken = baselines.Peer("broken", "torch", "clip", breaks)
    found = {one.peer.name: one for one in baselines.find([absent, broken])}
    assert found["absent"][1:] == (None, None, "not installed")
    assert found["broken"].why_not == "cannot be used: ImportError: libfoo.so is missing"
    assert found["broken"].version == importlib.metadata.version("torch")


def cross_entropy(query: Tensor, key: Tensor, own: Tensor, **options: Any) -> Tensor:
    assert options in ({}, {"filter_eps": None}, {"head_dim": 256}), "arguments the peer does not have, or its defaults"
    reduction = "none" if "head_dim" in options else "mean"  # inf-cl returns a loss for every row
    return torch.nn.functional.cross_entropy(query @ key.T, own, reduction=reduction)


def lightly_codes(out: Tensor, iterations: int, epsilon: float) -> Tensor:
    assert (iterations, epsilon) == (sinkhorn.ITERATIONS, sinkhorn.EPSILON)
    return sinkhorn.published(out)


def memeff(temperature: float, normalized_inputs: bool, stable: bool) -> Function:
    assert (temperature, normalized_inputs) == (1 / losses.LOGIT_SCALE, True), "it would normalise again"
    assert not stable, "its gradients would not be those of its value"
    return losses.dense_clip


def siglip_kernel(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return dense.siglip(image, text, log_scale.exp(), bias)


def flash_sinkhorn(x: Tensor, y: Tensor, a: Tensor, b: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Potentials of ``P_ij = exp((f_i + g_j - C_ij) / eps)``, that of the columns first."""
    eps, scale = options.pop("eps"), options.pop("cost_scale")
    iterations = options.pop("n_iters")
    assert options == {"ott_convention": True, "allow_tf32": False}
    cost = scale * torch.cdist(x.double(), y.double()) ** 2
    f = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(iterations):
        g = eps * (b.double().log() - ((f[:, None] - cost) / eps).logsumexp(0))
        f = eps * (a.double().log() - ((g - cost) / eps).logsumexp(1))
    return f.float(), g.float()


def name_of(peer: baselines.Peer) -> str:
    return f"{peer.name}-{peer.loss}"


FAKES = {
    "memeff-clip": ("memeff", "MemoryEfficientCLIPLoss", memeff),
    "siglip-kernel-siglip": ("siglip_kernel", "fused_siglip_loss", siglip_kernel),
    "flash-sinkhorn-potentials": ("flash_sinkhorn.kernels", "sinkhorn_flashstyle_alternating", flash_sinkhorn),
    "inf-cl-clip": ("inf_cl", "cal_flash_loss", cross_entropy),
    "cut-cross-entropy-clip": ("cut_cross_entropy", "linear_cross_entropy", cross_entropy),
    "liger-kernel-clip": ("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy", cross_entropy),
    "open_clip-clip": ("open_clip.loss", "ClipLoss", lambda **_: lambda x, y, scale: losses.dense_clip(x, y)),
    "open_clip-siglip": ("open_clip.loss", "SigLipLoss", lambda: dense.siglip),
    "lightly-nt_xent": ("lightly.loss", "NTXentLoss", lambda **_: losses.dense_nt_xent),
    "lightly-sinkhorn": ("lightly.loss.swav_loss", "sinkhorn", lightly_codes),
    "lightly-sinkhorn, out=": ("lightly.loss.swav_loss", "sinkhorn", lightly_codes),
}


@pytest.mark.parametrize("peer", baselines.PEERS, ids=name_of)
def test_peers_compute_the_loss(peer: baselines.Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    if name_of(peer) in FAKES:
        path, name, function = FAKES[name_of(peer)]
        parts = path.split(".")
        for i in range(len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), ModuleType(".".join(parts[: i + 1])))
        monkeypatch.setattr(sys.modules[path], name, function, raising=False)
    elif not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no F.linear_cross_entropy")
    inputs = WORKLOADS[peer.loss].inputs(64, 512, torch.float32)
    got = step_of(peer.load(), inputs)()
    for mine, want in zip(got, float64_reference.expected(peer.loss, inputs), strict=True):
        torch.testing.assert_close(mine.double(), want, rtol=1e-4, atol=1e-6)


def test_flash_sinkhorn_takes_unit_vectors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("flash_sinkhorn", "flash_sinkhorn.kernels"):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setattr(sys.modules["flash_sinkhorn.kernels"], "sinkhorn_flashstyle_alternating", None, raising=False)
    (peer,) = (peer for peer in baselines.PEERS if peer.name == "flash-sinkhorn")
    with pytest.raises(ValueError, match="of unit vectors, and in bfloat16 their lengths are rounded"):
        peer.load()(*WORKLOADS["potentials"].inputs(8, 16, torch.bfloat16))
