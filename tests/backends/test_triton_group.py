# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on columns that come from other ranks, in the interpreter, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.spawn import on_ranks
from torch import Tensor

from pycl import functional as F
from pycl.backends.registry import why_not
from pycl.distributed import Ring

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)


def losses(rank: int, world: int, transport: str) -> dict[Any, tuple[Tensor, Tensor]]:
    group: Any = dist.group.WORLD if transport == "gather" else Ring(dist.group.WORLD)
    torch.manual_seed(0)
    z = torch.randn(2, 11, 7)[:, slice(0, 7) if rank == 0 else slice(7, 11)]  # odd sizes: nothing is aligned
    found = {}
    for backend in ("triton", "reference"):
        options: dict[str, Any] = {"group": group, "backend": backend}
        for name in ("nt_xent", "clip", "siglip"):
            x = z.clone().requires_grad_()
            if name == "nt_xent":
                loss = F.nt_xent(x, **options)
            elif name == "clip":
                loss = F.clip(x[0], x[1], 2.0, **options)
            else:
                loss = F.siglip(x[0], x[1], 2.0, -1.0, **options)
            loss.backward()
            assert x.grad is not None
            found[name, backend] = loss.detach(), x.grad
    return found


@pytest.mark.parametrize("transport", ["gather", "ring"])
def test_columns_of_other_ranks(transport: str) -> None:
    for found in on_ranks(2, losses, transport):
        for name in ("nt_xent", "clip", "siglip"):
            for got, expected in zip(found[name, "triton"], found[name, "reference"], strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
