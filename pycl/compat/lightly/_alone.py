# SPDX-License-Identifier: Apache-2.0
"""What lightly's losses are before ``forward``, for where lightly is not installed: arguments, attributes, buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from pycl.compat._common import all_ranks, as_input, soft_cross_entropy


def _check_distributed(name: str, wanted: bool) -> None:
    if wanted and not dist.is_available():
        raise ValueError(f"{name}=True needs a torch that is built with torch.distributed")


class _Alone(nn.Module):
    def forward(self, *_: Any) -> Any:
        raise ImportError(f"{type(self).__name__} needs lightly's own code for this: pip install lightly")


class MemoryBank(nn.Module):
    """The last ``n`` keys, [n, d], in a ring; neither keys nor position are in the ``state_dict``, as in lightly."""

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: int | Sequence[int], gather_distributed: bool = False) -> None:
        super().__init__()
        shape = (size,) if isinstance(size, int) else tuple(size)
        if any(n < 0 for n in shape):
            raise ValueError(f"memory_bank_size must not be negative, got {size}")
        if shape != (0,) and len(shape) != 2:
            raise ValueError(f"memory_bank_size must be (keys, features), or 0 for no memory bank, got {size}")
        self.size = shape
        self.gather_distributed = gather_distributed
        keys = normalize(torch.randn(shape), dim=-1) if len(shape) == 2 else torch.empty(shape)
        self.register_buffer("bank", keys, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False) -> tuple[Tensor, Tensor]:
        """The output, and the keys before it joins them, [d, n]."""
        keys = self.bank.clone().t()
        if update:
            self._push(output.detach())
        return output, keys

    def _push(self, keys: Tensor) -> None:
        """Overwrite the oldest; what is too much for the end of the ring is dropped."""
        if self.gather_distributed and (group := all_ranks()) is not None:
            parts = [torch.empty_like(keys) for _ in range(group.size())]
            dist.all_gather(parts, keys.contiguous())
            keys = torch.cat(parts)
        start = int(self.bank_ptr)
        end = min(start + len(keys), self.size[0])
        self.bank[start:end] = keys[: end - start].to(self.bank.dtype)
        self.bank_ptr.fill_(end % self.size[0])


class NTXentLoss(_Alone):
    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.memory_bank = MemoryBank(memory_bank_size, gather_distributed)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.cross_entropy = nn.CrossEntropyLoss(reduction="mean")
        self.eps = 1e-8
        if abs(temperature) < self.eps:
            raise ValueError(f"temperature must not be 0, got {temperature}")
        _check_distributed("gather_distributed", gather_distributed)


class DirectCLRLoss(NTXentLoss):
    def __init__(
        self,
        loss_dim: int = 64,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(temperature, memory_bank_size, gather_distributed)
        self.loss_dim = loss_dim

    def forward(self, out0: Tensor, out1: Tensor) -> Any:
        return super().forward(*(out.flatten(1)[:, : self.loss_dim] for out in (out0, out1)))


class MACLLoss(_Alone):
    def __init__(self, temperature: float = 0.1, alpha: float = 0.5, A_0: float = 0.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.alpha = alpha
        self.A_0 = A_0
        self.eps = 1e-8
        if temperature < self.eps:
            raise ValueError(f"temperature must be at least {self.eps}, got {temperature}")
        for name, value in (("alpha", alpha), ("A_0", A_0)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")


class HypersphereLoss(_Alone):
    def __init__(self, t: float = 1.0, lam: float = 1.0, alpha: float = 2.0) -> None:
        super().__init__()
        self.t = t
        self.lam = lam
        self.alpha = alpha


class KoLeoLoss(_Alone):
    def __init__(self, p: float = 2, eps: float = 1e-8) -> None:
        super().__init__()
        self.p = p
        self.eps = eps
        self.pairwise_distance = nn.PairwiseDistance(p=p, eps=eps)


class DCLLoss(_Alone):
    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed
        _check_distributed("gather_distributed", gather_distributed)

    def _loss(self, *_: Any) -> Any:
        """Replaced by a subclass, it needs lightly."""


class DCLWLoss(DCLLoss):
    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False) -> None:
        super().__init__(temperature=temperature, gather_distributed=gather_distributed)


class SwaVLoss(_Alone):
    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        _check_distributed("sinkhorn_gather_distributed", sinkhorn_gather_distributed)
        self.temperature = temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def subloss(self, z: Tensor, q: Tensor) -> Tensor:
        """Mean cross entropy of scores ``z`` [B, K] over temperature with codes ``q`` [B, K]."""
        return as_input(soft_cross_entropy(z, q, self.temperature), z, "input")
