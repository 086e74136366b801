# SPDX-License-Identifier: Apache-2.0
"""The rows of the suite "gpu", the most important first: a run may be cut short by its budget."""

from __future__ import annotations

import torch

from .rows import Goals, Row

SIZE = 32768  # where the targets are
SAMPLES = 4096  # of Sinkhorn
SHARE = {256: 0.5, 512: 0.5, 128: 0.4}  # of the matmul rate; at d = 128, 2.5 times the floor
MEGABYTES = 100
DENSE = (("eager", 5.0), ("compile", 3.0))
INF_CL = ("inf-cl", 8.0)
NOT_SLOWER = Goals(faster=(("eager", 1.0),))
WITHOUT_COMPILE = ("eager", "peers")  # compiling a row takes longer than measuring it


def _row(
    loss: str,
    size: int,
    dim: int = 256,
    target: Goals | None = None,
    baselines: tuple[str, ...] | None = WITHOUT_COMPILE,
    dtype: torch.dtype = torch.bfloat16,
    precision: str = "highest",
    measure: str = "time",
) -> Row:
    kind = "bf16" if dtype == torch.bfloat16 else precision
    name = f"{loss}-{size}-d{dim}-{kind}"
    return Row(name, loss, size, dim, dtype, precision, target, measure, "cuda", baselines)


def _with_target(loss: str, dim: int) -> Row:
    faster = (*DENSE, INF_CL) if loss == "clip" else DENSE
    return _row(loss, SIZE, dim, Goals(SHARE[dim], MEGABYTES, faster), baselines=None)


def _sinkhorn(prototypes: int, target: Goals) -> Row:
    name = f"sinkhorn-{SAMPLES}-k{prototypes}-bf16"
    return Row(name, "sinkhorn", SAMPLES, prototypes, torch.bfloat16, target=target, device="cuda")


GPU_ROWS = (
    *(_with_target(loss, dim) for dim in SHARE for loss in ("clip", "nt_xent")),
    _sinkhorn(3000, Goals(microseconds=80)),
    _sinkhorn(65536, Goals(faster=(("eager", 10.0),))),
    _row("clip", 2**20, baselines=(), measure="one step"),
    *(_row("nt_xent", size, target=NOT_SLOWER) for size in (256, 1024)),
    _row("clip", 1024, target=NOT_SLOWER),
    *(_row(loss, 8192, baselines=None) for loss in ("clip", "nt_xent")),
    *(_row("clip", 8192, dtype=torch.float32, precision=precision) for precision in ("highest", "high")),
    _row("mv_dhel", 8192),
    *(_row(loss, size) for size in (65536, 16384, 131072, 4096, 2048) for loss in ("clip", "nt_xent")),
    *(_row(loss, SIZE, 1024) for loss in ("clip", "nt_xent")),
    *(_row(loss, 8192, dim) for dim in (512, 128, 1024) for loss in ("clip", "nt_xent")),
)
