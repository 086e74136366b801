# SPDX-License-Identifier: Apache-2.0
"""One line of a suite: a workload at one size, width, number format and device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..workloads.registry import WORKLOADS
from ..workloads.workload import Workload


@dataclass(frozen=True)
class Case:
    name: str
    loss: str  # what is measured, a key of WORKLOADS
    size: int  # rows of one matrix of similarities or scores
    dim: int  # of the embeddings; of stored scores, how many prototypes
    dtype: torch.dtype = torch.float32
    precision: str = "highest"  # torch.set_float32_matmul_precision, for every provider
    measure: str = "time"  # or "memory": one step in a fresh process; or "one step": ours alone, timed once, on a GPU
    device: str = "cpu"  # or "cuda"
    baselines: tuple[str, ...] | None = None  # no other ones, where all would take too long

    def at(self, size: int) -> Case:
        """The case at another size."""
        return replace(self, size=size)

    @property
    def workload(self) -> Workload:
        return WORKLOADS[self.loss]

    def inputs(self, device: str) -> list[Tensor]:
        return self.workload.inputs(self.size, self.dim, self.dtype, device)

    @property
    def floor_flop(self) -> int:
        return self.workload.floor_flop(self.size, self.dim)

    @property
    def floor_bytes(self) -> int:
        return self.workload.floor_bytes(self.size, self.dim, self.dtype)

    @property
    def matrix_bytes(self) -> int:
        """What dense forms store at least once."""
        rows, columns = self.workload.matrix(self.size, self.dim)
        return rows * columns * self.dtype.itemsize

    @property
    def kind(self) -> str:
        """The dtype without torch's name."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def format(self) -> str:
        """The dtype, with the float32 precision where it is not the highest: what errors depend on."""
        return self.kind if self.precision == "highest" else f"{self.kind}, {self.precision}"

    @property
    def label(self) -> str:
        precision = "" if self.precision == "highest" else f', "{self.precision}"'
        compiled = ", torch.compile" if self.baselines == ("compile",) else ""
        return f"{self.loss} {self.workload.shape(self.size, self.dim)}, {self.kind}{precision}{compiled}"

    def as_record(self) -> dict[str, Any]:
        """The record of the case before anything is measured."""
        return {
            **asdict(self),
            "label": self.label,
            "dtype": self.kind,
            "format": self.format,
            "floor_flop": self.floor_flop,
            "floor_bytes": self.floor_bytes,
            "notes": [],
            "skipped": {},
            "refused": None,
        }
