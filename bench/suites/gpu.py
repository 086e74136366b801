# SPDX-License-Identifier: Apache-2.0
"""The suite "gpu", the cases that matter most first: a run may be cut short by its budget.

Neighbours that measure the same loss share a process, and ``torch.compile``, which takes longer than all else of a
case, has cases of its own: a run without it leaves them out.
"""

from __future__ import annotations

import torch

from ..workloads.registry import WORKLOADS
from .case import Case

SIZE = 32768  # of the headline cases
WIDTHS = (256, 512, 128)  # of the headline cases
SAMPLES = 4096  # of Sinkhorn
DENSE_AND_PEERS, PEERS, COMPILE = ("eager", "peers"), ("peers",), ("compile",)


def _case(
    loss: str,
    size: int,
    dim: int = 256,
    baselines: tuple[str, ...] | None = DENSE_AND_PEERS,
    dtype: torch.dtype = torch.bfloat16,
    precision: str = "highest",
    measure: str = "time",
) -> Case:
    kind = "bf16" if dtype == torch.bfloat16 else precision
    name = f"{loss}-{size}-d{dim}-{kind}{'-compile' if baselines == COMPILE else ''}"
    return Case(name, loss, size, dim, dtype, precision, measure, "cuda", baselines)


def _headline(loss: str) -> list[Case]:
    return [_case(loss, SIZE, dim) for dim in WIDTHS]


def _smaller_and_larger(loss: str) -> list[Case]:
    sizes = [(size, 256) for size in (65536, 8192, 16384, 131072, 4096, 2048)]
    return [_case(loss, *shape) for shape in (*sizes, (SIZE, 1024), (8192, 512), (8192, 128), (8192, 1024))]


def _sinkhorn(prototypes: int) -> Case:
    name = f"sinkhorn-{SAMPLES}-k{prototypes}-bf16"
    others = ("eager", *WORKLOADS["sinkhorn"].others, "peers")
    return Case(name, "sinkhorn", SAMPLES, prototypes, torch.bfloat16, device="cuda", baselines=others)


GPU_CASES = (
    *_headline("clip"),
    _case("clip", 65536, 512, PEERS),  # the size that memeff publishes
    _case("clip", 1024),
    *_headline("siglip"),
    _case("siglip", 65536, 768, PEERS),  # the size that siglip-kernel publishes
    *_headline("nt_xent"),
    *(_case("nt_xent", size) for size in (256, 1024)),
    _sinkhorn(3000),
    _sinkhorn(65536),
    *(_case(loss, SIZE, dim, COMPILE) for dim in WIDTHS for loss in ("clip", "nt_xent")),
    _case("siglip", SIZE, 768),
    _case("clip", 2**20, baselines=(), measure="one step"),
    _case("clip", SIZE, 768),
    *(_case("clip", 8192, dtype=torch.float32, precision=precision) for precision in ("highest", "high")),
    *_smaller_and_larger("clip"),
    _case("nt_xent", SIZE, 768),
    *_smaller_and_larger("nt_xent"),
    _case("mv_dhel", 8192),
    _case("potentials", SAMPLES, 128, dtype=torch.float32),
)
