# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn that is measured, from stored scores and from features, and the dense forms it competes with.

All forms do what they do in the dtype of the scores, as published code does; some overflow or are off there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import pycl.functional
from pycl.backends import registry

from .workload import Workload

EPSILON, ITERATIONS, TEMPERATURE = 0.05, 3, 0.1  # SwAV's
PROTOTYPES = 3000
CROPS, CODE_CROPS = 8, 2
CLUSTERS, SPREAD = 8, 0.5  # scores reach 0.9, as those of trained prototypes do


def published(scores: Tensor) -> Tensor:
    """SwAV's and lightly's steps, restated: the assignment itself is divided, in place."""
    return published_steps((scores / EPSILON).exp())


def published_steps(q: Tensor) -> Tensor:
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(0)
        q /= q.sum(1, keepdim=True)
        q /= len(q)
    q *= len(q)
    return q


@functools.cache
def memory_of(owner: str, like: tuple[torch.Size, torch.dtype, torch.device]) -> Tensor:
    """Memory that keeps its pages from call to call."""
    shape, dtype, device = like
    return torch.zeros(shape, dtype=dtype, device=device)


def published_out(scores: Tensor) -> Tensor:
    q = memory_of("published", (scores.shape, scores.dtype, scores.device))
    return published_steps(torch.div(scores, EPSILON, out=q).exp_())


def scaling_out(scores: Tensor) -> Tensor:
    kernel = memory_of("scaling", (scores.shape, scores.dtype, scores.device))
    torch.div(scores, EPSILON, out=kernel).exp_()
    left, right = scalings(kernel)
    return kernel.mul_(left[:, None]).mul_(right)


def sinkhorn_out(scores: Tensor, backend: str | None = None) -> Tensor:
    out = memory_of("ours", (scores.shape, scores.dtype, scores.device))
    return pycl.functional.sinkhorn(scores, epsilon=EPSILON, iterations=ITERATIONS, out=out, backend=backend)


def published_float32(scores: Tensor) -> Tensor:
    """DINOv2's steps, restated: on float32, with one more division."""
    q = (scores.float() / EPSILON).exp()
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(0)
        q /= q.shape[1]
        q /= q.sum(1, keepdim=True)
        q /= len(q)
    q *= len(q)
    return q


def scaling(scores: Tensor, epsilon: float = EPSILON) -> Tensor:
    """The fastest spelling tried: exponentials once, then products with vectors."""
    kernel = (scores / epsilon).exp()
    left, right = scalings(kernel)
    return kernel.mul_(left[:, None]).mul_(right)


def scalings(kernel: Tensor) -> tuple[Tensor, Tensor]:
    samples, prototypes = kernel.shape
    left = kernel.new_ones(samples)
    for _ in range(ITERATIONS):
        right = samples / prototypes / (kernel.T @ left)
        left = (kernel @ right).reciprocal()
    return left, right


def log_domain(scores: Tensor) -> Tensor:
    logits = scores / EPSILON
    v = -logits.logsumexp(0)
    for _ in range(ITERATIONS - 1):
        u = -(logits + v).logsumexp(1, keepdim=True)
        v = -(logits + u).logsumexp(0)
    return (logits + v).softmax(1)


def dense_potentials(z: Tensor, prototypes: Tensor) -> Tensor:
    return torch.cat(scalings((z @ prototypes.T / EPSILON).exp())).log()


def dense_swav(
    crops: Tensor, prototypes: Tensor, *, temperature: float = TEMPERATURE, epsilon: float = EPSILON
) -> Tensor:
    scores = crops @ prototypes.T
    with torch.no_grad():
        codes = torch.stack([scaling(scores[i], epsilon) for i in range(CODE_CROPS)])
    log_p = (scores / temperature).log_softmax(2)
    others = log_p.sum(0) - log_p[:CODE_CROPS]
    return -(codes * others).sum((0, 2)).mean() / (CODE_CROPS * (len(crops) - 1))


def sinkhorn(scores: Tensor, backend: str | None = None) -> Tensor:
    return pycl.functional.sinkhorn(scores, epsilon=EPSILON, iterations=ITERATIONS, backend=backend)


def potentials(z: Tensor, prototypes: Tensor, backend: str | None = None) -> Tensor:
    solved = pycl.functional.sinkhorn_potentials(z, prototypes, epsilon=EPSILON, iterations=ITERATIONS, backend=backend)
    return torch.cat(solved)


def swav(crops: Tensor, prototypes: Tensor, backend: str | None = None) -> Tensor:
    return pycl.functional.swav(
        crops,
        prototypes,
        temperature=TEMPERATURE,
        epsilon=EPSILON,
        iterations=ITERATIONS,
        code_crops=range(CODE_CROPS),
        backend=backend,
    )


def clustered(counts: tuple[int, ...], dim: int, device: str) -> list[Tensor]:
    """Unit vectors around common centres."""
    draw = torch.Generator(device).manual_seed(sum(counts))

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=draw, device=device)

    centres = normal(CLUSTERS)
    picks = [torch.randint(CLUSTERS, (n,), generator=draw, device=device) for n in counts]
    return [F.normalize(centres[pick] + SPREAD * normal(len(pick))) for pick in picks]


class StoredScores(Workload):
    """Codes from scores ``[size, dim]``."""

    operator = registry.SINKHORN
    value = "codes"
    backward = False
    what = (
        f"Codes of stored scores, {ITERATIONS} iterations, forward; eager is the published iteration (SwAV, lightly), "
        "dinov2 the same on float32, scaling its fastest spelling, log that of log-sum-exps; with out=, all but "
        "lightly write to memory that has its pages"
    )
    bare = "one copy of the scores"
    rows_are = "samples"
    memory = "Peak memory of one call above its inputs, codes included, in units of the scores"
    memory_unit = "scores"
    features: ClassVar[int] = 128

    def inputs(self, size: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        z, prototypes = clustered((size, dim), self.features, device)
        return [(z @ prototypes.T).to(dtype)]

    def shape(self, size: int | str, dim: int) -> str:
        return f"{size} x {dim}"

    def matrix(self, size: int, dim: int) -> tuple[int, int]:
        return size, dim

    def floor_bytes(self, size: int, dim: int, dtype: torch.dtype) -> int:
        """One read of the scores for each iteration and one for the codes, which are written."""
        return (ITERATIONS + 2) * size * dim * dtype.itemsize

    @property
    def floor(self) -> str:
        return "one read of the scores for each iteration and for the codes, which are written"

    def bare_step(self, size: int, dim: int, dtype: torch.dtype) -> Callable[[], Tensor]:
        (scores,) = self.inputs(size, dim, dtype)
        return scores.clone


class FromFeatures(Workload):
    """Potentials from features ``[size, dim]`` and prototypes; all their scores are the matrix."""

    value = "potentials"
    backward = False
    what = "From features and prototypes; potentials: forward, swav: forward and backward"
    rows_are = "samples"
    memory = (
        "Peak memory of one step above its inputs with a workspace of 0, gradients included, "
        "in units of the scores of all crops"
    )
    memory_unit = "scores"
    crops: ClassVar[int] = 1

    def inputs(self, size: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        z, prototypes = clustered((self.crops * size, PROTOTYPES), dim, device)
        z = z if self.crops == 1 else z.view(self.crops, size, dim)
        return [x.to(dtype).requires_grad_(self.backward) for x in (z, prototypes)]

    def shape(self, size: int | str, dim: int) -> str:
        return f"{f'{self.crops} x ' if self.crops > 1 else ''}{size}, K = {PROTOTYPES}, d = {dim}"

    def matrix(self, size: int, dim: int) -> tuple[int, int]:
        return self.crops * size, PROTOTYPES


class Swapped(FromFeatures):
    """The loss of crops that predict each other's codes."""

    value = "loss"
    backward = True
    crops = CROPS


SINKHORN_WORKLOADS: dict[str, Workload] = {
    "sinkhorn": StoredScores(
        sinkhorn, published, others={"dinov2": published_float32, "scaling": scaling, "log": log_domain}
    ),
    "sinkhorn, out=": StoredScores(sinkhorn_out, published_out, others={"scaling": scaling_out}),
    "potentials": FromFeatures(potentials, dense_potentials),
    "swav": Swapped(swav, dense_swav),
}
