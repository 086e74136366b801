# SPDX-License-Identifier: Apache-2.0
"""The suites as tables of rows, and what a row should take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .losses import LOSSES
from .sinkhorn import TRANSPORTS
from .work import Work

WORKS: dict[str, Work] = LOSSES | TRANSPORTS


@dataclass(frozen=True)
class Target:
    """``at_most`` times what ``unit`` takes ("G" or a provider), or GiB, or the scores' memory; and ``faster`` times as
    fast as eager."""

    at_most: float
    unit: str
    faster: float | None = None

    def __str__(self) -> str:
        if self.unit in ("G", "GiB", "scores"):
            text = f"<= {self.at_most:g} {self.unit}"
        else:
            text = times_as_fast(self.unit, 1 / self.at_most)
        return text if self.faster is None else f"{text}, {times_as_fast('eager', self.faster)}"


@dataclass(frozen=True)
class Goals:
    """On a GPU: a share of the measured roof, memory beyond inputs and answer, times as fast as others, the time."""

    share: float | None = None
    megabytes: float | None = None
    faster: tuple[tuple[str, float], ...] = ()
    microseconds: float | None = None

    def __str__(self) -> str:
        parts = [] if self.share is None else [f">= {self.share:.0%} of the roof"]
        parts += [] if self.microseconds is None else [f"<= {self.microseconds:g} us"]
        parts += [] if self.megabytes is None else [f"<= {self.megabytes:g} MB"]
        parts += [times_as_fast(name, factor) for name, factor in self.faster]
        return ", ".join(parts)


def times_as_fast(name: str, factor: float) -> str:
    return f"not slower than {name}" if factor == 1 else f">= {factor:g} x {name}"


@dataclass(frozen=True)
class Row:
    name: str
    loss: str  # what is measured, a key of WORKS
    size: int  # rows of one matrix of similarities or scores
    dim: int  # of the embeddings; of stored scores, how many prototypes
    dtype: torch.dtype = torch.float32
    precision: str = "highest"  # torch.set_float32_matmul_precision, for every provider
    target: Target | Goals | None = None
    measure: str = "time"  # or "memory": one step in a fresh process; or "one step": ours alone, timed once, on a GPU
    device: str = "cpu"
    baselines: tuple[str, ...] | None = None  # no other ones, where all would take too long

    def at(self, size: int) -> Row:
        """The row at another size, where its target says nothing."""
        return self if size == self.size else replace(self, size=size, target=None)

    @property
    def work(self) -> Work:
        return WORKS[self.loss]

    @property
    def floor_flop(self) -> int:
        return self.work.floor_flop(self.size, self.dim)

    @property
    def floor_bytes(self) -> int:
        return self.work.floor_bytes(self.size, self.dim, self.dtype)

    @property
    def matrix_bytes(self) -> int:
        """What dense forms store at least once."""
        rows, columns = self.work.matrix(self.size, self.dim)
        return rows * columns * self.dtype.itemsize

    @property
    def label(self) -> str:
        precision = "" if self.precision == "highest" else f', "{self.precision}"'
        shape = self.work.shape(self.size, self.dim)
        compiled = ", torch.compile" if self.baselines == ("compile",) else ""
        return f"{self.loss} {shape}, {str(self.dtype).removeprefix('torch.')}{precision}{compiled}"


LOSS_ROWS = (
    Row("clip-d128", "clip", 8192, 128, target=Target(3.8, "G", 5.5)),
    Row("clip-d512", "clip", 8192, 512, target=Target(4.2, "G", 2.2)),
    Row("clip-d512-medium", "clip", 8192, 512, precision="medium", target=Target(2.5, "G")),
    Row("nt_xent-d128", "nt_xent", 8192, 128, target=Target(2.0, "G", 6.0)),
    Row("nt_xent-d512", "nt_xent", 8192, 512, target=Target(2.0, "G")),
    Row("clip-d128-bf16", "clip", 8192, 128, torch.bfloat16, target=Target(3.8, "G", 12.0)),
    Row("clip-d512-bf16", "clip", 8192, 512, torch.bfloat16, target=Target(6.0, "G", 5.5)),
    Row("nt_xent-256", "nt_xent", 256, 128, target=Target(1.0, "eager")),
    Row("mv_dhel-v4", "mv_dhel", 4096, 128, target=Target(8.0, "G")),
    Row("clip-65536", "clip", 65536, 128, target=Target(0.5, "GiB"), measure="memory"),
    Row("clip-131072", "clip", 131072, 64, measure="memory"),
)

SINKHORN_ROWS = (
    Row("sinkhorn", "sinkhorn", 4096, 3000, target=Target(1 / 6, "lightly", 6.0)),
    Row("sinkhorn-out", "sinkhorn, out=", 4096, 3000, target=Target(1 / 6, "lightly")),
    Row("sinkhorn-bf16", "sinkhorn", 4096, 3000, torch.bfloat16),
    Row("sinkhorn-fp16", "sinkhorn", 4096, 3000, torch.float16),
    Row("sinkhorn-256", "sinkhorn", 256, 3000),
    Row("sinkhorn-64", "sinkhorn", 64, 512),
    Row("sinkhorn-k16384", "sinkhorn", 2048, 16384),
    Row("potentials", "potentials", 4096, 128),
    Row("potentials-swept", "potentials", 8192, 128),  # more scores than a CPU keeps
    Row("swav", "swav", 1024, 128),
    Row("sinkhorn-memory", "sinkhorn", 4096, 3000, target=Target(1.2, "scores"), measure="memory"),
    Row("swav-memory", "swav", 1024, 128, measure="memory"),
)
