# SPDX-License-Identifier: Apache-2.0
"""SwAV as modules: the prototypes, and the loss with its queue of earlier features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pycl import functional
from pycl.core.tracing import observed
from pycl.distributed.ranks import Group
from pycl.functional._common import Views
from pycl.functional._sinkhorn_args import check_iterations
from pycl.modules.base import Loss
from pycl.modules.queue import places

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
        self.weight = nn.Parameter(torch.empty(n_prototypes, dim))
        self.reset_parameters()

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

    def reset_parameters(self) -> None:
        """Draw the prototypes anew."""
        nn.init.normal_(self.weight)
        self.normalize_()

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
    fixed = Loss.fixed | {"queue_size", "dim"}
    per_call = frozenset({"queue", "queue_mask"})
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
        super().__init__(
            temperature,
            epsilon,
            iterations,
            code_crops=code_crops,
            learnable_temperature=learnable_temperature,
            reduction=reduction,
            normalize=normalize,
            group=group,
            backend=backend,
        )
        if queue_size < 0 or (queue_size > 0 and (dim is None or dim < 1)):
            raise ValueError(f"queue_size must be >= 0, and > 0 only with dim >= 1, got {queue_size} with dim={dim}")
        has_queue = queue_size > 0 and dim is not None
        self.register_buffer("queue", torch.zeros(len(code_crops), queue_size, dim or 0) if has_queue else None)
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64) if has_queue else None)

    def check(self, name: str, value: Any) -> Any:
        if name == "iterations":
            return check_iterations(value)
        queue = self._buffers.get("queue")
        if name == "code_crops" and queue is not None and len(value) != len(queue):
            raise ValueError(f"code_crops must be {len(queue)} as in the queue, got {value}")
        return super().check(name, value)

    def reset_parameters(self) -> None:
        """Empty the queue, and give a learnable temperature the value it was built with."""
        super().reset_parameters()
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    def forward(self, crops: Views, prototypes: Tensor | Prototypes) -> Tensor:
        """The loss of V crops ``[B, dim]`` and prototypes ``[K, dim]``; writes the code crops to the queue."""
        weight = prototypes.weight if isinstance(prototypes, Prototypes) else prototypes
        if self.queue is None or self.queue_pointer is None:
            return self._call(crops, weight)
        if not observed() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "SwAVLoss was called by a backward pass, as torch.utils.checkpoint does: its queue has changed since, "
                "so that the loss would be another one. Keep the loss out of what is checkpointed"
            )
        loss = self._call(crops, weight, **self._earlier(self.queue, self.queue_pointer))
        self._write([crops[i] for i in self.options["code_crops"]])
        return loss

    def _earlier(self, queue: Tensor, pointer: Tensor) -> dict[str, Tensor | None]:
        """The queue where it is full; a mask where looking would wait for a device or needs a graph of its own."""
        full = pointer >= queue.shape[1]
        if pointer.device.type == "cpu" and not observed():
            return {"queue": queue if full else None}
        return {"queue": queue, "queue_mask": full.expand(queue.shape[1])}

    @torch.no_grad()
    def _write(self, features: list[Tensor]) -> None:
        assert self.queue is not None
        assert self.queue_pointer is not None
        n = features[0].shape[0]
        at = places(self.queue_pointer, n, self.queue.shape[1])
        self.queue[:, at] = torch.stack([z[n - len(at) :] for z in features]).to(self.queue)
        self.queue_pointer.add_(n)
