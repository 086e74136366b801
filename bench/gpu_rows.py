# SPDX-License-Identifier: Apache-2.0
"""The rows of the suite "gpu", those with a target first: a run may be cut short by its budget.

Neighbours that measure the same loss share a process, and ``torch.compile``, which takes longer than all else of a row,
has rows of its own: a run without it leaves them out.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .rows import WORKS, Goals, Row

SIZE = 32768  # where the targets are
SAMPLES = 4096  # of Sinkhorn
SHARE = {256: 0.65, 512: 0.5, 128: 0.65}  # of the matmul rate
MEGABYTES = {128: 100, 256: 100, 512: 400}  # a strip of weights takes 1/512 of the memory, of 141 GB
EAGER, COMPILED, INF_CL = ("eager", 5.0), ("compile", 3.0), ("inf-cl", 8.0)
HEADLINE = {
    "clip": Goals(faster=(EAGER, INF_CL)),
    "siglip": Goals(),
    "nt_xent": Goals(faster=(EAGER,)),
}
NOT_SLOWER = Goals(faster=(("eager", 1.0),))
MEMEFF = Goals(faster=(("memeff", 2.0),))
SIGLIP_KERNEL = Goals(faster=(("siglip-kernel", 1.25),))  # at most 0.8 times its time
DENSE_AND_PEERS, PEERS, COMPILE = ("eager", "peers"), ("peers",), ("compile",)


def _row(
    loss: str,
    size: int,
    dim: int = 256,
    target: Goals | None = None,
    baselines: tuple[str, ...] | None = DENSE_AND_PEERS,
    dtype: torch.dtype = torch.bfloat16,
    precision: str = "highest",
    measure: str = "time",
) -> Row:
    kind = "bf16" if dtype == torch.bfloat16 else precision
    name = f"{loss}-{size}-d{dim}-{kind}{'-compile' if baselines == COMPILE else ''}"
    return Row(name, loss, size, dim, dtype, precision, target, measure, "cuda", baselines)


def _headline(loss: str) -> list[Row]:
    def goals(dim: int) -> Goals:
        memory = MEGABYTES[dim] if HEADLINE[loss].faster else None
        return replace(HEADLINE[loss], share=SHARE[dim], megabytes=memory)

    return [_row(loss, SIZE, dim, goals(dim)) for dim in SHARE]


def _smaller_and_larger(loss: str) -> list[Row]:
    sizes = [(size, 256) for size in (65536, 8192, 16384, 131072, 4096, 2048)]
    return [_row(loss, *shape) for shape in (*sizes, (SIZE, 1024), (8192, 512), (8192, 128), (8192, 1024))]


def _sinkhorn(prototypes: int, target: Goals) -> Row:
    name = f"sinkhorn-{SAMPLES}-k{prototypes}-bf16"
    others = ("eager", *WORKS["sinkhorn"].others, "peers")
    return Row(name, "sinkhorn", SAMPLES, prototypes, torch.bfloat16, "highest", target, "time", "cuda", others)


GPU_ROWS = (
    *_headline("clip"),
    _row("clip", 65536, 512, MEMEFF, PEERS),  # the size that memeff publishes
    _row("clip", 1024, target=NOT_SLOWER),
    *_headline("siglip"),
    _row("siglip", 65536, 768, SIGLIP_KERNEL, PEERS),  # the size that siglip-kernel publishes
    *_headline("nt_xent"),
    *(_row("nt_xent", size, target=NOT_SLOWER) for size in (256, 1024)),
    _sinkhorn(3000, Goals(microseconds=80)),
    _sinkhorn(65536, Goals(faster=(("eager", 10.0),))),
    *(_row(loss, SIZE, dim, Goals(faster=(COMPILED,)), COMPILE) for dim in SHARE for loss in ("clip", "nt_xent")),
    _row("siglip", SIZE, 768),
    _row("clip", 2**20, baselines=(), measure="one step"),
    _row("clip", SIZE, 768),
    *(_row("clip", 8192, dtype=torch.float32, precision=precision) for precision in ("highest", "high")),
    *_smaller_and_larger("clip"),
    _row("nt_xent", SIZE, 768),
    *_smaller_and_larger("nt_xent"),
    _row("mv_dhel", 8192),
    _row("potentials", SAMPLES, 128, dtype=torch.float32),
)
