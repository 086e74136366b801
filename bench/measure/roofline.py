# SPDX-License-Identifier: Apache-2.0
"""The two rates that bound everything: operations a second of a large product, bytes a second of a large copy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .correctness import matmul_precision
from .timing import Step, interleaved

MATMUL_SIZE = 8192
FLOAT64_SIZE = 4096  # some GPUs take a second for a float64 product of MATMUL_SIZE
COPIED_FLOATS = 2**29  # 2 GiB, beyond every cache
SECONDS = 0.3  # spent on a rate

Clock = Callable[[Step], float]


def rates(clock: Clock, device: str) -> dict[str, float]:
    """Operations a second in every number format, and bytes a second under ``"copy"``.

    Random data: products of zeros draw less power and run faster than anything real.
    """
    return {
        "bfloat16": _matmul_rate(clock, device, torch.bfloat16, MATMUL_SIZE),
        "float32": _matmul_rate(clock, device, torch.float32, MATMUL_SIZE),
        "float32, high": _matmul_rate(clock, device, torch.float32, MATMUL_SIZE, "high"),
        "float64": _matmul_rate(clock, device, torch.float64, FLOAT64_SIZE),
        "copy": _copy_rate(clock, device),
    }


def _copy_rate(clock: Clock, device: str) -> float:
    x = torch.randn(COPIED_FLOATS, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / _median(clock, lambda: y.copy_(x))  # read and written


def _matmul_rate(clock: Clock, device: str, dtype: torch.dtype, size: int, precision: str = "highest") -> float:
    x, y = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with matmul_precision(precision):
        return 2 * size**3 / _median(clock, lambda: torch.mm(x, y))


def _median(clock: Clock, step: Step) -> float:
    step()
    return interleaved({"it": step}, seconds=SECONDS, clock=clock)["it"].median
