# SPDX-License-Identifier: Apache-2.0
"""One process, or those that torchrun started: with gloo on CPUs, with NCCL on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.flags import Refused


class Ranks(NamedTuple):
    """This process among ``size``."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """The rank that writes files and shows the progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This rank's part of the rows of a batch."""
        return rows[self.rank :: self.size]

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the ranks of a number."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def all(self, value: Any) -> list[Any]:
        """What every rank has."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def own_random(self) -> AbstractContextManager[None]:
        """A block whose random numbers are not taken from those that come after it."""
        return torch.random.fork_rng([] if self.device.type == "cpu" else [self.device])

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the ranks. Buffers stay each rank's own, as a queue has to."""
        if self.size == 1:
            return module
        if self.device.type == "cuda":  # SyncBatchNorm has no CPU form: there every rank has its own statistics
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)


@contextmanager
def start(device: str) -> Iterator[Ranks]:
    """The ranks of this run, whose process group ends with the block."""
    size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    where = _device(device, local if size > 1 else None)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size == 1:
        yield Ranks(0, 1, where)
        return
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), size, where)
    finally:
        dist.destroy_process_group()


def _device(name: str, local: int | None) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Refused(f"--device {name} is no device: cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise Refused(f"--device {name}: the examples run on cpu and cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Refused(f"--device {name}: this torch sees no GPU")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local if local is not None else torch.cuda.current_device())
    return device
