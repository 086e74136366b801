# SPDX-License-Identifier: Apache-2.0
"""Every loss on several processes against one process: ``torchrun --nproc_per_node=3 -m pycl.testing``.

With both transports, gathered and by ring. On GPUs with NCCL where there is one for each rank, else on the CPU with
gloo. Each rank computes the loss of the whole batch by itself to compare with; value and gradients must agree to 1e-10
in float64 on a CPU, to 1e-4 in float32 on GPUs. The status is 1 where one does not.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pycl import functional
from pycl.distributed.ranks import Ring
from pycl.testing import Equivalence, compare
from pycl.testing.table import LOSSES


def prototypes(z: Tensor) -> Tensor:
    return nn.functional.normalize(torch.cos(torch.arange(5.0 * z.shape[-1])).view(5, -1), dim=1).to(z)


def swav(views: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return functional.swav(views, prototypes(views), normalize=True, **options)


CALLS: dict[str, Callable[..., Tensor]] = {name: row.of_views for name, row in LOSSES.items()} | {"swav": swav}


def equivalence(loss: Callable[..., Tensor], views: Tensor, labels: Tensor, mine: slice, group: object) -> Equivalence:
    """What all ranks find together, with the averaging of DistributedDataParallel."""
    whole, share = views.clone().requires_grad_(), views[:, mine].clone().requires_grad_()
    expected = loss(whole, labels)
    value = loss(share, labels[mine], group=group)
    (d_whole,), (d_share,) = torch.autograd.grad(expected, whole), torch.autograd.grad(value, share)
    gradient, value = torch.zeros_like(whole), value.detach().clone()
    gradient[:, mine] = d_share
    for summed in (gradient, value):
        dist.all_reduce(summed)
        summed /= dist.get_world_size()
    return compare(value, gradient.flatten(), expected.detach(), d_whole.flatten())


def main() -> int:
    gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    dtype, tolerance = (torch.float32, 1e-4) if gpus else (torch.float64, 1e-10)
    if gpus:
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    n = 64 * world + 7  # the last rank has seven more
    views, labels = torch.randn(3, n, 16, dtype=dtype).to(device), torch.randint(0, 9, (n,)).to(device)
    mine = slice(64 * rank, 64 * rank + 64 if rank + 1 < world else n)
    world_group, failed = dist.group.WORLD, 0
    assert world_group is not None
    for name, loss in CALLS.items():
        for transport, group in (("gather", world_group), ("ring", Ring(world_group))):
            found = equivalence(loss, views, labels, mine, group)
            good = max(abs(found.value - 1), found.error) <= tolerance
            failed += not good
            if rank == 0:
                print(f"{'ok  ' if good else 'FAIL'} {name:22} {transport:8} {found}", flush=True)
    if rank == 0:
        print(f"{world} ranks on {device}: {len(CALLS)} losses in both transports, {failed} failed")
    dist.destroy_process_group()
    return failed


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="torchrun --nproc_per_node=3 -m pycl.testing",
        description=__doc__,
        epilog="For a loss of your own call pycl.testing.assert_ddp_equivalent in a test.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    if "LOCAL_RANK" not in os.environ:
        raise SystemExit("start this with torchrun --nproc_per_node=3 -m pycl.testing")
    raise SystemExit(1 if main() else 0)
