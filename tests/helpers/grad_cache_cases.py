# SPDX-License-Identifier: Apache-2.0
"""What a gradient cache has to reproduce: a step with one graph over all chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

WIDTH = 6


class Encoder(nn.Module):
    """A layer under test between two linear ones, in float64."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), layer or nn.Identity(), nn.Linear(WIDTH, 4))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Anybody's contrastive loss."""
    return cross_entropy(normalize(x) @ normalize(y).T / 0.3, torch.arange(len(x)))


def plain(loss: Callable[..., Tensor], *towers: Any, chunk_size: int | Sequence[int]) -> Tensor:
    """The step that holds the activations of every chunk; inputs are tensors."""
    sizes = [chunk_size] * len(towers) if isinstance(chunk_size, int) else chunk_size
    embeddings = []
    for (encoder, x), size in zip(towers, sizes, strict=True):
        chunks = [encoder(chunk) for chunk in x.split(size)]
        if isinstance(chunks[0], tuple):
            embeddings.append(tuple(torch.cat(column) for column in zip(*chunks, strict=True)))
        else:
            embeddings.append(torch.cat(chunks))
    value = loss(*embeddings)
    value.backward()
    return value.detach()


def outcome(step: Callable[..., Tensor], model: nn.Module, case: Callable[[Any], Any], **options: Any) -> Any:
    """Value, gradients, buffers and next random numbers of ``step(*case(model))`` on a copy of the model."""
    torch.manual_seed(1)
    model = deepcopy(model)
    value = step(*case(model), **options)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"value": value, **gradients, **dict(model.named_buffers()), "next": torch.rand(3)}


def assert_same(got: dict[str, Any], want: dict[str, Any], tolerance: float = 1e-12) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        if expected is None:
            assert got[name] is None, name
        else:
            assert_close(got[name], expected, rtol=tolerance, atol=tolerance / 10, msg=lambda m, n=name: f"{n}: {m}")
