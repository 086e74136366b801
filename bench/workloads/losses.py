# SPDX-License-Identifier: Apache-2.0
"""The losses that are measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import pycl.functional

from . import dense
from .workload import Workload

CLUSTERS = 8  # without them the softmax part of a gradient is as small as its rounding to bfloat16
LOGIT_SCALE = 14.3  # where CLIP starts: 1 / 0.07
TEMPERATURE = 0.5
SIGMOID = (10.0, -10.0)  # scale and bias where SigLIP starts; both are learned


def clip(image: Tensor, text: Tensor, backend: str | None = None) -> Tensor:
    return pycl.functional.clip(image, text, LOGIT_SCALE, backend=backend)


def dense_clip(image: Tensor, text: Tensor) -> Tensor:
    return dense.fastest("clip")(image, text, logit_scale=LOGIT_SCALE)


def nt_xent(*views: Tensor, backend: str | None = None) -> Tensor:
    return pycl.functional.nt_xent(views, temperature=TEMPERATURE, backend=backend)


def dense_nt_xent(*views: Tensor) -> Tensor:
    return dense.nt_xent(torch.stack(views), TEMPERATURE)


def mv_dhel(*views: Tensor, backend: str | None = None) -> Tensor:
    return pycl.functional.mv_dhel(views, temperature=TEMPERATURE, backend=backend)


def dense_mv_dhel(*views: Tensor) -> Tensor:
    return dense.mv_dhel(torch.stack(views), TEMPERATURE)


@dataclass(frozen=True)
class LossWorkload(Workload):
    """``ours`` and ``dense`` take the embeddings of every view, as separate tensors, and then the scalars."""

    views: int = 2
    stacked: bool = False  # one matrix of the points of all views, not one per view or pair of views
    unit: bool = False  # takes embeddings of unit length
    scalars: tuple[float, ...] = ()  # learned ones
    flop: int = 8  # over N^2 d: the least that exact gradients take without the matrix, a symmetric one swept by halves

    def inputs(self, size: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        n = size // self.views if self.stacked else size
        draw = torch.Generator(device).manual_seed(size)

        def normal(rows: int) -> Tensor:
            return torch.randn(rows, dim, generator=draw, device=device)

        cluster = torch.randint(CLUSTERS, (n,), generator=draw, device=device)
        centres = normal(CLUSTERS)[cluster] + normal(n)
        views = [centres + normal(n) for _ in range(self.views)]
        points = [(F.normalize(z) if self.unit else z).to(dtype).requires_grad_() for z in views]
        wide = torch.promote_types(dtype, torch.float32)
        return points + [torch.tensor(x, dtype=wide, device=device, requires_grad=True) for x in self.scalars]

    def shape(self, size: int | str, dim: int) -> str:
        return f"{f'{self.views} x ' if self.views > 2 else ''}{size}, d = {dim}"

    def matrix(self, size: int, dim: int) -> tuple[int, int]:
        return size, size

    def floor_flop(self, size: int, dim: int) -> int:
        return self.flop * size**2 * dim

    @property
    def floor(self) -> str:
        return f"{self.flop} N² d"


LOSS_WORKLOADS = {
    "clip": LossWorkload(clip, dense_clip, unit=True),
    "siglip": LossWorkload(pycl.functional.siglip, dense.siglip, unit=True, scalars=SIGMOID, flop=6),
    "nt_xent": LossWorkload(nt_xent, dense_nt_xent, stacked=True, flop=4),
    "mv_dhel": LossWorkload(mv_dhel, dense_mv_dhel, views=4, flop=16),
}
