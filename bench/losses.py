# SPDX-License-Identifier: Apache-2.0
"""What is measured, against which dense formula, and what it should take; the rows of the suite "losses".

The dense formulas are speed baselines: the shortest form that stores the matrix, in the fastest of the spellings tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

import pycl.functional

CLUSTERS = 8  # without them the softmax part of a gradient is as small as its rounding to bfloat16
LOGIT_SCALE = 14.3  # where CLIP starts: 1 / 0.07
TEMPERATURE = 0.5

LossFunction = Callable[..., Tensor]


def dense_clip(image: Tensor, text: Tensor) -> Tensor:
    logits = LOGIT_SCALE * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def dense_nt_xent(*views: Tensor) -> Tensor:
    """For two views, as lightly's loss without its four blocks and their concatenation: less than half the time."""
    z = F.normalize(torch.cat(views))
    logits = z @ z.T / TEMPERATURE
    logits.fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def dense_mv_dhel(*views: Tensor) -> Tensor:
    z = F.normalize(torch.stack(views), dim=-1)
    logits = z @ z.mT / TEMPERATURE
    logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    positives = torch.einsum("vid,wid->ivw", z, z) / TEMPERATURE
    first, second = torch.triu_indices(len(z), len(z), 1, device=z.device)
    return (logits.logsumexp(2).sum(0) - positives[:, first, second].logsumexp(1)).mean()


def clip(image: Tensor, text: Tensor) -> Tensor:
    return pycl.functional.clip(image, text, LOGIT_SCALE)


def nt_xent(*views: Tensor) -> Tensor:
    return pycl.functional.nt_xent(views, temperature=TEMPERATURE)


def mv_dhel(*views: Tensor) -> Tensor:
    return pycl.functional.mv_dhel(views, temperature=TEMPERATURE)


@dataclass(frozen=True)
class Loss:
    ours: LossFunction  # of the embeddings of every view, as separate tensors
    dense: LossFunction
    views: int = 2
    stacked: bool = False  # one matrix of the points of all views, not one per view or pair of views
    unit: bool = False  # takes embeddings of unit length
    flop: int = 8  # over N^2 d: the least that exact gradients take without the matrix, a symmetric one swept by halves

    def inputs(self, size: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        """Leaves that require a gradient, for similarity matrices of ``size`` rows; the same ones at every call."""
        n = size // self.views if self.stacked else size
        draw = torch.Generator(device).manual_seed(size)

        def normal(rows: int) -> Tensor:
            return torch.randn(rows, dim, generator=draw, device=device)

        cluster = torch.randint(CLUSTERS, (n,), generator=draw, device=device)
        centres = normal(CLUSTERS)[cluster] + normal(n)
        views = [centres + normal(n) for _ in range(self.views)]
        return [(F.normalize(z) if self.unit else z).to(dtype).requires_grad_() for z in views]


LOSSES = {
    "clip": Loss(clip, dense_clip, unit=True),
    "nt_xent": Loss(nt_xent, dense_nt_xent, stacked=True, flop=4),
    "mv_dhel": Loss(mv_dhel, dense_mv_dhel, views=4, flop=16),
}


def step_of(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """A forward and backward pass: the loss and the gradient of every input."""

    def step() -> list[Tensor]:
        value = loss(*inputs)
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    return step


@dataclass(frozen=True)
class Target:
    """``at_most`` times what ``unit`` takes ("G" or "eager"), or GiB; and ``faster`` times as fast as eager."""

    at_most: float
    unit: str
    faster: float | None = None

    def __str__(self) -> str:
        if self.unit == "eager":
            return "not slower than eager"
        text = f"<= {self.at_most:g} {self.unit}"
        return text if self.faster is None else f"{text}, >= {self.faster:g} x eager"


@dataclass(frozen=True)
class Goals:
    """On a GPU: a share of the measured matmul rate, memory above the inputs, times as fast as other providers."""

    share: float | None = None
    megabytes: float | None = None
    faster: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        parts = [] if self.share is None else [f">= {self.share:.0%} of the roof"]
        parts += [] if self.megabytes is None else [f"<= {self.megabytes:g} MB"]
        parts += [
            f"not slower than {name}" if factor == 1 else f">= {factor:g} x {name}" for name, factor in self.faster
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Row:
    name: str
    loss: str
    size: int  # rows of one similarity matrix: the bare product G is [size, dim] x [dim, size]
    dim: int
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
    def floor_flop(self) -> int:
        return LOSSES[self.loss].flop * self.size**2 * self.dim

    @property
    def label(self) -> str:
        points = f"{LOSSES[self.loss].views} x {self.size}" if self.loss == "mv_dhel" else str(self.size)
        precision = "" if self.precision == "highest" else f', "{self.precision}"'
        return f"{self.loss} {points}, d = {self.dim}, {str(self.dtype).removeprefix('torch.')}{precision}"


LOSS_ROWS = (
    Row("clip-d128", "clip", 8192, 128, target=Target(3.8, "G", 5.5)),
    Row("clip-d512", "clip", 8192, 512, target=Target(4.2, "G", 2.2)),
    Row("clip-d512-high", "clip", 8192, 512, precision="high", target=Target(2.5, "G")),
    Row("nt_xent-d128", "nt_xent", 8192, 128, target=Target(2.0, "G", 6.0)),
    Row("nt_xent-d512", "nt_xent", 8192, 512, target=Target(2.0, "G")),
    Row("clip-d128-bf16", "clip", 8192, 128, torch.bfloat16, target=Target(3.8, "G", 12.0)),
    Row("clip-d512-bf16", "clip", 8192, 512, torch.bfloat16, target=Target(6.0, "G", 5.5)),
    Row("nt_xent-256", "nt_xent", 256, 128, target=Target(1.0, "eager")),
    Row("mv_dhel-v4", "mv_dhel", 4096, 128, target=Target(8.0, "G")),
    Row("clip-65536", "clip", 65536, 128, target=Target(0.5, "GiB"), measure="memory"),
    Row("clip-131072", "clip", 131072, 64, measure="memory"),
)
