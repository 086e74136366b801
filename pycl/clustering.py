# SPDX-License-Identifier: Apache-2.0
"""SwAV as modules: the prototypes, and the loss with its queue of earlier features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pycl import functional
from pycl.distributed import Group
from pycl.functional._common import Views
from pycl.functional._transport import check_iterations
from pycl.modules import Loss

__all__ = ["Prototypes", "SwAVLoss"]


class Prototypes(nn.Module):
    """K directions in feature space; ``prototypes(z)`` are the scores ``z @ weight.T``.

    Args:
        dim: width of the features.
        n_prototypes: K; SwAV takes 3000 for ImageNet.
    """

    def __init__(self, dim: int, n_prototypes: int) -> None:
        super().__init__()
        if min(dim, n_prototypes) < 1:
            raise ValueError(f"dim and n_prototypes must be at least 1, got {dim} and {n_prototypes}")
        self.weight = nn.Parameter(torch.randn(n_prototypes, dim))
        self.normalize_()

    @torch.no_grad()
    def normalize_(self) -> Prototypes:
        """L2-normalise every prototype in place, outside of the graph: SwAV does so before each step."""
        self.weight.copy_(nn.functional.normalize(self.weight, dim=1))
        return self

    def skip_update(self) -> None:
        """Forget this step's gradient; call it between ``backward()`` and ``optimizer.step()``.

        SwAV keeps the prototypes as they were drawn for its first steps (313 at a batch of 4096, 5005 at 256). An
        optimizer leaves a parameter without a gradient alone, weight decay and momentum included, and unlike with
        ``requires_grad_(False)`` DistributedDataParallel sees the same graph in every step.
        """
        self.weight.grad = None

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.weight.T


class SwAVLoss(Loss):
    """Module of :func:`pycl.functional.swav`, with a queue of earlier features for small batches.

    The queue takes part once it is full. The code crops of a step are written to it after they were assigned, the
    oldest rows making place; it is part of the ``state_dict`` as ``queue`` [I, queue_size, dim] and ``queue_pointer``,
    the number of rows written so far: the next one goes to ``queue_pointer % queue_size``. Every rank has its own: keep
    the loss out of what DistributedDataParallel wraps, which would copy the first rank's buffers to all.

    Args:
        temperature, epsilon, iterations, code_crops, reduction, normalize, group, backend: as in the function.
        queue_size: rows kept for each code crop, 0 for no queue; SwAV takes 3840 for a batch of 256.
        dim: width of the features, which the queue needs to know beforehand.
    """

    function = staticmethod(functional.swav)
    queue: Tensor | None
    queue_pointer: Tensor | None

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        *,
        code_crops: Sequence[int] = (0, 1),
        queue_size: int = 0,
        dim: int | None = None,
        learnable_temperature: bool = False,
        reduction: str = "mean",
        normalize: bool = False,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None:
        arguments = dict(locals())
        queue_size, dim = arguments.pop("queue_size"), arguments.pop("dim")
        super().__init__(arguments)
        check_iterations(iterations)
        if queue_size < 0 or (queue_size > 0 and (dim is None or dim < 1)):
            raise ValueError(f"queue_size must be >= 0, and > 0 only with dim >= 1, got {queue_size} with dim={dim}")
        has_queue = queue_size > 0 and dim is not None
        self.register_buffer("queue", torch.zeros(len(code_crops), queue_size, dim or 0) if has_queue else None)
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64) if has_queue else None)
        self._written: int | None = 0  # queue_pointer on the host; None where it has to be looked up

    def forward(self, crops: Views, prototypes: Tensor | Prototypes) -> Tensor:
        """The loss of V crops ``[B, dim]`` and prototypes ``[K, dim]``; writes the code crops to the queue."""
        weight = prototypes.weight if isinstance(prototypes, Prototypes) else prototypes
        if self.queue is None:
            return self._call(crops, weight)
        full = self._rows_written() >= self.queue.shape[1]
        loss = self._call(crops, weight, queue=self.queue if full else None)
        self._write([crops[i] for i in self.options["code_crops"]])
        return loss

    def _rows_written(self) -> int:
        if self._written is None:
            assert self.queue_pointer is not None
            self._written = int(self.queue_pointer)
        return self._written

    @torch.no_grad()
    def _write(self, features: list[Tensor]) -> None:
        assert self.queue is not None
        assert self.queue_pointer is not None
        size, n = self.queue.shape[1], len(features[0])
        kept = min(n, size)  # of a batch larger than the queue, its last rows
        written = self._rows_written() + n
        at = torch.arange(written - kept, written, device=self.queue.device) % size
        self.queue[:, at] = torch.stack([z[n - kept :] for z in features]).to(self.queue)
        self.queue_pointer.fill_(written)
        self._written = written

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._written = None
