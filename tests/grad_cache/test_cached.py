# SPDX-License-Identifier: Apache-2.0
"""The gradient cache against the step that keeps one graph over all chunks."""

from __future__ import annotations

import functools
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.grad_cache_cases import WIDTH, Encoder, assert_same, batch, cosine, outcome, plain
from torch import Tensor, nn
from torch.testing import assert_close

import pycl

EXACT = {"rtol": 1e-12, "atol": 1e-13}
N = 11
CALLS: dict[str, Callable[..., Tensor]] = {
    "nt_xent": pycl.NTXentLoss(0.5),
    "clip": lambda z1, z2: pycl.functional.clip(z1, z2, 3.0, normalize=True),
    "anybody's": cosine,
}


def compare(model: nn.Module, case: Callable[[Any], Any], chunk_size: Any = 3) -> None:
    """cached_step on ``case(model)``, a loss and towers, leaves behind what one graph over the chunks does."""
    got, want = (outcome(step, model, case, chunk_size=chunk_size) for step in (pycl.cached_step, plain))
    assert_same(got, want)


@pytest.mark.parametrize("chunk_size", [1, 3, 6, 11, 99, [4, 3]], ids=str)
@pytest.mark.parametrize("loss", CALLS.values(), ids=CALLS)
def test_it_is_the_step_on_the_whole_batch(loss: Callable[..., Tensor], chunk_size: Any) -> None:
    model, (x, y) = Encoder(), batch(2, N)

    def case(model: nn.Module) -> Any:
        return loss, (model, x), (model, y)

    got = outcome(pycl.cached_step, model, case, chunk_size=chunk_size)
    assert not got["value"].requires_grad
    assert_same(got, outcome(plain, model, case, chunk_size=N))


@pytest.mark.parametrize("chunk_size", [3, N])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        nn.BatchNorm1d(WIDTH),
        nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3)),
    ],
    ids=["dropout", "batch norm", "spectral norm", "all"],
)
def test_chunks_repeat(layer: nn.Module, chunk_size: int) -> None:
    """Dropout masks, and buffers that training writes to; what is left behind is one step's."""
    x, y = batch(2, N)
    compare(Encoder(layer), lambda model: (cosine, (model, x), (model, y)), chunk_size)


def test_buffers_that_are_replaced_or_cannot_be_written() -> None:
    class Odd(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.ones((), dtype=torch.float64))
            self.register_buffer("expanded", torch.ones(1, dtype=torch.float64).expand(WIDTH))
            self.register_buffer("absent", None)

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count * 2
            return super().forward(x * self.expanded / self.count)

    x, y = batch(2, N)
    compare(Odd(), lambda model: (cosine, (model, x), (model, y)))


def test_random_numbers_of_the_loss() -> None:
    x, y = batch(2, N)

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        return cosine(z1, z2 + torch.randn_like(z2))

    compare(Encoder(nn.Dropout(0.5)), lambda model: (loss, (model, x), (model, y)))


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def embed(self, x: Tensor) -> Tensor:
        return self.model(x)


def decorated(model: nn.Module) -> Callable[..., Tensor]:
    @functools.wraps(model.forward)
    def call(*inputs: Tensor) -> Tensor:
        return model(*inputs)

    return call


@pytest.mark.parametrize(
    "encoder",
    [
        lambda model: lambda x: model(x),
        lambda model: model.forward,
        lambda model: functools.partial(lambda x, scale: scale * model(x), scale=2),
        lambda model: functools.partial(nn.Module.__call__, model),
        lambda model: Trainer(model).embed,
        lambda model: lambda x, net=model: net(x),
        lambda model: (lambda trainer: lambda x: trainer.embed(x))(Trainer(model)),
        decorated,
    ],
    ids=["closure", "method", "partial", "argument", "object", "default", "closed over object", "decorated"],
)
def test_modules_are_found(encoder: Callable[[nn.Module], Any]) -> None:
    """Otherwise running statistics would be updated twice."""
    x, y = batch(2, N)
    compare(Encoder(nn.BatchNorm1d(WIDTH)), lambda model: (cosine, (encoder(model), x), (encoder(model), y)))


def test_inputs_of_every_form() -> None:
    x, mask, model = batch(N), torch.rand(N, WIDTH) > 0.5, Encoder()

    def encode(x: Any, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        x = torch.stack(x) if isinstance(x, list) else x
        return scale * model(x if mask is None else x * mask)

    want = plain(cosine, (model, x * mask), (lambda x: 2 * model(x), x), chunk_size=N)
    doubled = lambda x: encode(x, None, 2.0)  # noqa: E731
    for first in ((x, mask), {"x": x, "mask": mask}, UserDict(mask=mask, x=x), (list(x), mask), (x, mask, 1.0)):
        for second in ((encode, (x, None, 2.0)), (encode, {"scale": 2.0, "x": list(x)}), (doubled, list(x))):
            assert_close(pycl.cached_step(cosine, (encode, first), second, chunk_size=3), want, **EXACT)


def test_towers_of_different_lengths() -> None:
    """Queries with several passages each."""
    queries, passages = batch(4), batch(12)

    def loss(q: Tensor, p: Tensor) -> Tensor:
        return pycl.functional.info_nce(q, p[:4], p[4:])

    compare(nn.ModuleList([Encoder(), Encoder()]), lambda m: (loss, (m[0], queries), (m[1], passages)), [4, 5])


@pytest.mark.parametrize("chunk_size", [3, N])
def test_several_tensors_from_an_encoder(chunk_size: int) -> None:
    """One with a gradient, one that takes none, one that the loss does not use, and one that has none to give."""
    x, y = batch(2, N)

    def case(model: nn.Module) -> Any:
        return loss, (lambda x: (model(x), x.sum(1) > 0, model(x).exp(), x.sum(1)), x), (model, y)

    def loss(first: tuple[Tensor, ...], second: Tensor) -> Tensor:
        z, keep, _, weight = first
        return cosine(z * keep[:, None] * weight[:, None], second)

    compare(Encoder(), case, chunk_size)


@pytest.mark.parametrize("chunk_size", [3, N])
def test_inputs_that_want_a_gradient(chunk_size: int) -> None:
    """One with a graph behind it that can be gone through only once, in two towers, one of them without parameters."""
    x = batch(N)

    def case(models: nn.ModuleList) -> Any:
        hidden = models[0].net(x).exp()
        return cosine, (lambda h: models[1](h[:, :1] * h), hidden), (lambda h: h.tanh(), hidden)

    compare(nn.ModuleList([Encoder(), nn.Linear(4, 4).double()]), case, chunk_size)


def test_an_input_without_influence_has_gradient_zero() -> None:
    unused, x = batch(N).requires_grad_(), batch(N).requires_grad_()
    encoder = Encoder()
    pycl.cached_step(lambda z: z.square().sum(), (lambda x, _: encoder(x), (x, unused)), chunk_size=3)
    assert x.grad is not None
    assert x.grad.abs().min() > 0
    assert_close(unused.grad, torch.zeros_like(unused))


def test_parameters_of_the_loss() -> None:
    x, y = batch(2, N)
    model = nn.ModuleList([Encoder(), pycl.NTXentLoss(0.2, learnable_temperature=True).double()])
    compare(model, lambda m: (m[1], (m[0], x), (m[0], y)))


def test_a_tower_that_the_loss_detaches() -> None:
    x, y = batch(2, N)
    model = nn.ModuleList([Encoder(nn.BatchNorm1d(WIDTH)), Encoder(nn.BatchNorm1d(WIDTH))])
    compare(model, lambda m: (lambda a, b: cosine(a, b.detach()), (m[0], x), (m[1], y)))
    assert outcome(pycl.cached_step, model, lambda m: (lambda a, b: cosine(a, b.detach()), (m[0], x), (m[1], y)),
                   chunk_size=3)["1.net.0.weight"] is None  # fmt: skip


def test_steps_accumulate() -> None:
    batches = batch(3, 2, N)

    def steps(step: Callable[..., Tensor], model: nn.Module) -> Tensor:
        return torch.stack([step(cosine, (model, x), (model, y), chunk_size=4) for x, y in batches])

    model = Encoder(nn.Dropout(0.2))
    got, want = (outcome(steps, model, lambda model, s=step: (s, model)) for step in (pycl.cached_step, plain))
    assert_same(got, want)
