# SPDX-License-Identifier: Apache-2.0
"""Is a loss on many processes the loss on one? For pycl's losses, anybody else's, and in a project's own tests."""

from __future__ import annotations

import datetime
import gc
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Equivalence", "assert_ddp_equivalent", "compare_with_one_process"]


class Equivalence(NamedTuple):
    """What DistributedDataParallel trains with on several ranks, against one process with all of the batch.

    ``value`` is the mean of the ranks' losses over the loss of one process; ``scale`` and ``cosine`` compare the
    gradients of all parameters as one vector. A loss that is the same on many processes has 1, 1 and 1.
    """

    value: float
    scale: float
    cosine: float
    error: float  # the largest difference of a gradient, relative to the largest gradient

    def __str__(self) -> str:
        return f"loss x {self.value:.6g}, gradient x {self.scale:.6g}, cosine {self.cosine:.6f}"


def assert_ddp_equivalent(
    loss: nn.Module | Callable[..., Tensor],
    inputs: Sequence[Tensor] | None = None,
    *,
    world_size: int = 2,
    shares: Sequence[int] | None = None,
    tolerance: float = 1e-6,
    timeout: float = 120,
) -> None:
    """Raise AssertionError unless ``loss`` trains on ``world_size`` gloo processes as it does on one.

    Arguments are those of :func:`compare_with_one_process`; the message says by how much value and gradient are off.
    Takes seconds: the processes start and import torch.
    """
    found = compare_with_one_process(loss, inputs, world_size=world_size, shares=shares, timeout=timeout)
    if not (abs(found.value - 1) <= tolerance and found.error <= tolerance):
        raise AssertionError(
            f"on {world_size} processes {getattr(loss, '__name__', loss)} is not what it is on one: {found} "
            "(1, 1 and 1 expected)"
        )


def compare_with_one_process(
    loss: nn.Module | Callable[..., Tensor],
    inputs: Sequence[Tensor] | None = None,
    *,
    world_size: int = 2,
    shares: Sequence[int] | None = None,
    timeout: float = 120,
) -> Equivalence:
    """Train one step under DistributedDataParallel on gloo processes and on one process, and compare.

    Floating-point inputs go through one linear encoder, whose gradients, and those of the parameters of the loss, are
    what is compared, in float64.

    Args:
        loss: called as ``loss(*inputs)``. A module of pycl is given the group; anything else takes the default group
            itself, as ``dist.group.WORLD`` or by asking whether ``torch.distributed`` runs. It must be picklable: a
            module or a function of a file, no lambda. From a script call this below ``if __name__ == "__main__"``.
        inputs: tensors with the batch in front; None for two views ``[24, 8]``. Integers, such as labels, are handed on
            as they are.
        world_size: number of processes.
        shares: how many instances each rank has; None for even shares.
        timeout: seconds until a collective gives up.

    Raises:
        TypeError: a loss that cannot be sent to another process.
        ValueError: shares that do not add up to the batch, a batch that cannot be split evenly, world_size < 2.
    """
    try:
        pickle.dumps(loss)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"loss must be a module or a function of a file, got {loss!r}, which is neither: {error}"
        ) from error
    if world_size < 2:
        raise ValueError(f"world_size must be at least 2, got {world_size}")
    if inputs is None:
        inputs = torch.randn(2, 12 * world_size, 8, dtype=torch.float64).unbind()
    n = len(inputs[0])
    if shares is None:
        if n % world_size:
            raise ValueError(f"inputs must split evenly over world_size = {world_size}, got {n}; or give shares")
        shares = [n // world_size] * world_size
    if len(shares) != world_size or sum(shares) != n or min(shares) < 1:
        raise ValueError(f"shares must be {world_size} numbers >= 1 with a sum of {n}, got {list(shares)}")
    parts = [torch.split(x.detach().cpu(), list(shares)) for x in inputs]
    of_ranks = [[part[rank] for part in parts] for rank in range(world_size)]
    jobs = [_start(loss, [[x.detach().cpu() for x in inputs]], timeout), _start(loss, of_ranks, timeout)]
    (one,), many = (finish() for finish in jobs)
    return compare(torch.stack([m[0] for m in many]).mean(), many[0][1], one[0], one[1])


def compare(value: Tensor, gradient: Tensor, expected_value: Tensor, expected: Tensor) -> Equivalence:
    norm = expected.norm().clamp_min(torch.finfo(expected.dtype).tiny)
    return Equivalence(
        value=float(value / expected_value),
        scale=float(gradient.norm() / norm),
        cosine=float(gradient @ expected / (norm * gradient.norm().clamp_min(torch.finfo(norm.dtype).tiny))),
        error=float((gradient - expected).abs().max() / expected.abs().max().clamp_min(1e-300)),
    )


class _Step(nn.Module):
    """Encoder and loss in one module, so that all parameters are DistributedDataParallel's."""

    def __init__(self, loss: Any, width: int, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, width).double()
        self.loss = loss
        if group is not None and isinstance(getattr(loss, "options", None), dict) and "group" in loss.options:
            loss.options["group"] = group

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.loss(*(self.encoder(x) if x.is_floating_point() else x for x in inputs))
        return found


def _start(loss: Any, of_ranks: list[list[Tensor]], timeout: float) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    """Start one process for each rank; what returns waits for them and gives each rank's loss and gradients."""
    folder = tempfile.TemporaryDirectory()
    world = len(of_ranks)
    started = start_processes(
        _rank, (world, folder.name, loss, of_ranks, timeout), nprocs=world, join=False, start_method="spawn"
    )

    def finish() -> list[tuple[Tensor, Tensor]]:
        with folder:
            while not started.join():
                pass
            return [torch.load(Path(folder.name) / f"{rank}.pt") for rank in range(world)]

    return finish


def _rank(rank: int, world: int, folder: str, loss: Any, of_ranks: list[list[Tensor]], timeout: float) -> None:
    torch.set_num_threads(1)
    seconds = datetime.timedelta(seconds=timeout)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=seconds)
    try:
        torch.save(_train(loss, of_ranks[rank]), Path(folder) / f"{rank}.pt")
        # a group that goes with the last object that holds it, a DistributedDataParallel here, joins threads of its own
        # that may wait for the interpreter's lock: seen once in some hundred runs
        gc.collect()
    finally:
        dist.destroy_process_group()


def _train(loss: Any, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One step: the loss, and the gradients of all parameters."""
    inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    torch.manual_seed(0)
    width = next(x for x in inputs if x.is_floating_point()).shape[-1]
    trained = DistributedDataParallel(_Step(loss, width, dist.group.WORLD))
    value = trained(*inputs).mean()
    value.backward()
    gradients = [p.grad.flatten() for p in trained.parameters() if p.grad is not None]
    return value.detach(), torch.cat(gradients).double()
