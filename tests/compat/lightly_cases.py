# SPDX-License-Identifier: Apache-2.0
"""The calls of lightly's losses that the drop-in is held to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from parity import Case, embeddings
from torch import Tensor
from torch.nn.functional import normalize

MODULE = "lightly.loss"
HALF = 4e-2  # of lightly in bfloat16, whose every step is rounded


def pair(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return embeddings(n, d, 1, dtype), embeddings(n, d, 2, dtype)


def class_of(module: Any, name: str) -> Any:
    """A class of lightly.loss, which does not import its module of the HypersphereLoss."""
    return getattr(module if hasattr(module, name) else module.hypersphere_loss, name)


def loss_of(name: str, *args: Any, **options: Any) -> Callable[..., Tensor]:
    return lambda module, *inputs: class_of(module, name)(*args, **options)(*inputs)


def wide(out0: Tensor, out1: Tensor) -> tuple[Tensor, Tensor]:
    """The same features as feature maps."""
    return out0.unflatten(1, (-1, 2)), out1.unflatten(1, (-1, 2))


def masked(views: int, batch: int, prototypes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Anchors of some views, targets and prototypes."""
    return tuple(embeddings(n, 5, seed, dtype) for seed, n in enumerate((views * batch, batch, prototypes)))


def even(mean_probabilities: Tensor) -> Tensor:
    return torch.ones_like(mean_probabilities) / len(mean_probabilities)


def lopsided(out0: Tensor, out1: Tensor) -> Tensor:
    return (out0**2 * out1).sum(1)  # tells the views apart, and has a gradient


def with_bank(temperature: float, keys: int, steps: int = 1, kind: Any = None) -> Callable[..., Tensor]:
    """The sum of the losses of some steps on the same views, with a bank of known keys."""

    def run(module: Any, out0: Tensor, out1: Tensor) -> Tensor:
        loss = (kind or module.NTXentLoss)(temperature, memory_bank_size=(keys, out0.shape[1])).to(out0.dtype)
        loss.memory_bank.bank.copy_(normalize(embeddings(keys, out0.shape[1], 7, out0.dtype), dim=1))
        return torch.stack([loss(out0 + 0.1 * k, out1 - 0.2 * k) for k in range(steps)]).sum()

    return run


def swav(n_high: int, n_low: int, n_queue: int = 0, **options: Any) -> Callable[..., Tensor]:
    def run(module: Any, *scores: Tensor) -> Tensor:
        high, low, queue = scores[:n_high], scores[n_high : n_high + n_low], scores[n_high + n_low :]
        loss = module.SwaVLoss(**options)
        return loss(list(high), list(low), list(queue)) if n_queue else loss(list(high), list(low))

    return run


def scores(*rows: int, k: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(embeddings(n, k, seed, dtype) for seed, n in enumerate(rows))


def sinkhorn(module: Any, out: Tensor) -> Tensor:
    codes = sys.modules[f"{MODULE}.swav_loss"].sinkhorn if module.__name__ == MODULE else module.sinkhorn
    return codes(out, 2, 0.1) + 0 * out


LIBRARY = frozenset({"library"})  # runs where lightly is installed
CASES: dict[str, Case] = {
    "NTXentLoss": Case(loss_of("NTXentLoss"), pair(7, 5)),
    "NTXentLoss two samples": Case(loss_of("NTXentLoss", 0.1), pair(2, 3)),
    "NTXentLoss float32": Case(loss_of("NTXentLoss", temperature=0.07), pair(12, 8, torch.float32)),
    "NTXentLoss bfloat16": Case(loss_of("NTXentLoss", 0.5), pair(9, 8, torch.bfloat16), HALF),
    "NTXentLoss gathering alone": Case(loss_of("NTXentLoss", gather_distributed=True), pair(5, 4)),
    "NTXentLoss negative temperature": Case(loss_of("NTXentLoss", -0.5), pair(5, 4), tags=frozenset({"fallback"})),
    "NTXentLoss bank": Case(with_bank(0.2, 11), pair(7, 5)),
    "NTXentLoss bank float32": Case(with_bank(0.1, 9), pair(4, 8, torch.float32)),
    "NTXentLoss bank over its end": Case(with_bank(0.2, 11, steps=4), pair(4, 5)),
    "NTXentLoss bank filled exactly": Case(with_bank(0.2, 8, steps=3), pair(4, 5)),
    "NTXentLoss bank smaller than the batch": Case(with_bank(0.2, 3, steps=3), pair(7, 5)),
    "DirectCLRLoss": Case(loss_of("DirectCLRLoss", 3, 0.2), pair(7, 5)),
    "DirectCLRLoss maps": Case(loss_of("DirectCLRLoss", 5, 0.2), wide(*pair(7, 8))),
    "DirectCLRLoss bank": Case(lambda m, *x: with_bank(0.2, 11, kind=partial(m.DirectCLRLoss, 5))(m, *x), pair(7, 5)),
    "MACLLoss": Case(loss_of("MACLLoss"), pair(7, 5)),
    "MACLLoss options": Case(loss_of("MACLLoss", 0.5, 0.9, 0.3), pair(2, 3)),
    "MACLLoss float32": Case(loss_of("MACLLoss"), pair(12, 8, torch.float32)),
    "MACLLoss bfloat16": Case(loss_of("MACLLoss", 0.5), pair(9, 8, torch.bfloat16), HALF),
    "MACLLoss cold below 0": Case(loss_of("MACLLoss", 0.3, 1.0, 1.0), (embeddings(5, 4, 1), -embeddings(5, 4, 1))),
    "HypersphereLoss": Case(loss_of("HypersphereLoss"), pair(7, 5)),
    "HypersphereLoss options": Case(loss_of("HypersphereLoss", 2.0, 0.7, 3.0), pair(2, 3)),
    "HypersphereLoss float32": Case(loss_of("HypersphereLoss", 2.0), pair(12, 8, torch.float32)),
    "HypersphereLoss t of 0": Case(loss_of("HypersphereLoss", 0.0), pair(5, 4), tags=frozenset({"fallback"})),
    "KoLeoLoss": Case(loss_of("KoLeoLoss"), pair(7, 5)[:1]),
    "KoLeoLoss options": Case(loss_of("KoLeoLoss", 1, 1e-3), pair(9, 3)[:1]),
    "KoLeoLoss one point": Case(loss_of("KoLeoLoss"), pair(1, 5)[:1]),
    "KoLeoLoss float32": Case(loss_of("KoLeoLoss"), pair(12, 8, torch.float32)[:1]),
    "KoLeoLoss bfloat16": Case(loss_of("KoLeoLoss"), pair(9, 8, torch.bfloat16)[:1], HALF),
    "MSNLoss": Case(loss_of("MSNLoss"), masked(2, 3, 7), tags=LIBRARY),
    "MSNLoss one view": Case(loss_of("MSNLoss", 0.3, 5, 0.4), masked(1, 6, 4), tags=LIBRARY),
    "MSNLoss targets as they are": Case(loss_of("MSNLoss", 0.3, 0, 0.0), masked(3, 2, 4), tags=LIBRARY),
    "MSNLoss float32": Case(loss_of("MSNLoss"), masked(2, 5, 9, torch.float32), tags=LIBRARY),
    "MSNLoss bfloat16": Case(loss_of("MSNLoss", 0.5), masked(2, 5, 9, torch.bfloat16), HALF, LIBRARY),
    "PMSNLoss": Case(loss_of("PMSNLoss", 0.2, 2, 0.4, 0.5), masked(2, 3, 7), tags=LIBRARY),
    "PMSNCustomLoss": Case(loss_of("PMSNCustomLoss", even, 0.2), masked(2, 3, 7), tags=LIBRARY),
    "DCLLoss": Case(loss_of("DCLLoss"), pair(7, 5)),
    "DCLLoss float32": Case(loss_of("DCLLoss", temperature=0.07), pair(12, 8, torch.float32)),
    "DCLLoss bfloat16": Case(loss_of("DCLLoss", 0.5), pair(9, 8, torch.bfloat16), HALF),
    "DCLLoss weighted": Case(loss_of("DCLLoss", 0.3, lopsided), pair(7, 5)),
    "DCLLoss negative temperature": Case(loss_of("DCLLoss", -0.5), pair(5, 4), tags=frozenset({"fallback"})),
    "DCLWLoss": Case(loss_of("DCLWLoss"), pair(7, 5)),
    "DCLWLoss sigma": Case(loss_of("DCLWLoss", 0.2, 0.9), pair(3, 5)),
    "DCLWLoss bfloat16": Case(loss_of("DCLWLoss", 0.5), pair(9, 8, torch.bfloat16), HALF),
    "SwaVLoss": Case(swav(2, 0), scores(7, 7)),
    "SwaVLoss crops": Case(swav(2, 3, temperature=0.2, sinkhorn_iterations=5), scores(*[7] * 5)),
    "SwaVLoss three code crops": Case(swav(3, 1, sinkhorn_epsilon=0.1), scores(*[6] * 4)),
    "SwaVLoss one code crop": Case(swav(1, 2), scores(*[6] * 3)),
    "SwaVLoss queue": Case(swav(2, 1, 2), scores(7, 7, 7, 4, 4)),
    "SwaVLoss float32": Case(swav(2, 1), scores(7, 7, 7, dtype=torch.float32)),
    "SwaVLoss bfloat16": Case(swav(2, 1, sinkhorn_epsilon=0.5), scores(7, 7, 7, dtype=torch.bfloat16), HALF),
    "SwaVLoss no iterations": Case(swav(2, 0, sinkhorn_iterations=0), scores(5, 5), tags=frozenset({"fallback"})),
    "subloss": Case(lambda module, z, q: module.SwaVLoss(0.3).subloss(z, q), scores(7, 7)),
    "sinkhorn": Case(sinkhorn, scores(7)),
}
