# SPDX-License-Identifier: Apache-2.0
"""The gradient cache beside the rest of PyTorch: scaling, autocast, compilers, memory, wrong calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.grad_cache_cases import WIDTH, Encoder, assert_same, batch, cosine, outcome, plain
from torch import Tensor, nn
from torch.testing import assert_close

import pycl

N = 11
DEVICE = torch.get_default_device().type


def test_scaled_gradients() -> None:
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    x, y = batch(2, N)

    def case(model: nn.Module) -> Any:
        return cosine, (model, x), (model, y)

    for chunk_size in (3, N):
        model = Encoder()
        want = outcome(plain, model, case, chunk_size=N)
        got = outcome(pycl.cached_step, model, case, chunk_size=chunk_size, scaler=scaler)
        for name, _ in model.named_parameters():
            got[name] = got[name] / 1024
        assert_same(got, want)


def test_a_scaler_s_whole_step() -> None:
    x, y = batch(2, N)
    weights = []
    for scaled in (True, False):
        torch.manual_seed(0)
        model = Encoder()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(DEVICE, enabled=scaled)
        pycl.cached_step(cosine, (model, x), (model, y), chunk_size=3, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        weights.append(model.net[0].weight.detach())
    assert_close(*weights, rtol=1e-12, atol=1e-13)


class Casts(torch.autograd.Function):
    """Notes whether autocast is on in forward and backward."""

    seen: list[tuple[str, bool]]

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: str) -> Tensor:
        ctx.where = where
        Casts.seen.append((where, torch.is_autocast_enabled(DEVICE)))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor, None]:
        Casts.seen.append((f"{ctx.where} backward", torch.is_autocast_enabled(DEVICE)))
        return d_x, None


@pytest.mark.parametrize("chunk_size", [4, N])
def test_autocast(chunk_size: int) -> None:
    """Weights keep their gradient (casts made without a graph are cached), and backwards run without autocast."""
    x, y = batch(2, N).float()

    def case(model: nn.Module) -> Any:
        def encode(x: Tensor) -> Tensor:
            z = model(x)
            assert z.dtype == torch.bfloat16
            return Casts.apply(z, "encoder")

        return lambda a, b: cosine(Casts.apply(a, "loss").float(), b.float()), (encode, x), (encode, y)

    model, got = Encoder().float(), {}
    for step, cached in ((plain, chunk_size == N), (pycl.cached_step, True)):
        # a cast that chunks share would sum their gradients in bfloat16
        Casts.seen = []
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=cached):
            got[step] = outcome(step, model, case, chunk_size=chunk_size)
    assert_same(got[pycl.cached_step], got[plain], 1e-5)
    assert set(Casts.seen) == {
        ("encoder", True), ("loss", True), ("encoder backward", False), ("loss backward", False)
    }  # fmt: skip


class Saved:
    """A tensor that a graph keeps, counted while it is kept."""

    now = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Saved.now += tensor.numel()
        Saved.peak = max(Saved.peak, Saved.now)
        weakref.finalize(self, self.forget, tensor.numel())

    @staticmethod
    def forget(numel: int) -> None:
        Saved.now -= numel


def test_activations_of_one_chunk_are_in_memory() -> None:
    x, peak = batch(640), {}
    net = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]).double()
    for step, chunk_size in ((plain, 640), (pycl.cached_step, 640), (pycl.cached_step, 64)):
        Saved.now = Saved.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            step(lambda z: z.sum(), (net, x), chunk_size=chunk_size)
        assert Saved.now == 0
        peak[step, chunk_size] = Saved.peak
    assert peak[pycl.cached_step, 640] == peak[plain, 640]  # the plain step itself, without a second forward
    weights = sum(parameter.numel() for parameter in net.parameters())
    assert peak[pycl.cached_step, 64] <= peak[plain, 640] / 10 + weights


@pytest.mark.parametrize("wrap", ["module", "function"])
def test_compiled_encoders(wrap: str) -> None:
    x, y = batch(2, N)
    layer = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout(0.4))

    def case(model: nn.Module) -> Any:
        torch.compiler.reset()
        run = torch.compile(model if wrap == "module" else lambda x: model(x), backend="aot_eager", fullgraph=True)
        return cosine, (run, x), (lambda x: run(x), y)

    model = Encoder(layer)
    got, want = (outcome(step, model, case, chunk_size=4) for step in (pycl.cached_step, plain))
    assert_same(got, want)


X = torch.zeros(5, WIDTH, dtype=torch.float64)


def no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.exp()


F: Callable[..., Tensor] = nn.Linear(WIDTH, 3).double()
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "loss": ((None, (F, X)), TypeError, "loss must be callable, got NoneType"),
    "no tower": ((torch.sum,), ValueError, "towers: at least one pair .* got none"),
    "no pair": ((torch.sum, F), TypeError, r"towers\[0\] must be a pair \(encoder, inputs\)"),
    "other way round": ((torch.sum, (F, X), (X, F)), TypeError, r"towers\[1\] must be a pair.*got \(Tensor, Linear\)"),
    "no input": ((torch.sum, (F, {"a": 1})), TypeError, r"towers\[0\].*a tensor or a list.*got int"),
    "number": ((torch.sum, (F, X.sum())), ValueError, r"towers\[0\]: input 0 .*shape \(\)"),
    "empty": ((torch.sum, (F, X[:0])), ValueError, r"towers\[0\].*>= 1, got 0: 0"),
    "lengths": ((torch.sum, (F, {"a": X, "b": [1]})), ValueError, "one and the same number of rows.*'a': 5, 'b': 1"),
    "output": ((torch.sum, (lambda x: {"z": F(x)}, X)), TypeError, r"towers\[0\].*tuple of tensors, got dict; wrap it"),
    "outputs": ((torch.sum, (lambda x: (F(x), None), X)), TypeError, r"got \(Tensor, NoneType\)"),
    "rows": ((torch.sum, (lambda x: F(x)[:1], X)), ValueError, r"each of the \d rows of a chunk, got shape \(1, 3\)"),
    "pooled": ((torch.sum, (lambda x: F(x).sum(), X)), ValueError, r"got shape \(\)"),
    "no gradient": ((torch.sum, (no_grad, X)), RuntimeError, r"towers\[0\].*has no gradient \(torch.no_grad"),
    "loss's type": ((lambda z: 1.0, (F, X)), TypeError, "loss must return a tensor, got float"),
    "loss's shape": ((lambda z: z.sum(1), (F, X)), ValueError, r"loss must return one number, got shape \(5,\)"),
    "loss's gradient": ((lambda z: z.detach().sum(), (F, X)), RuntimeError, "loss must depend on the embeddings"),
}


@pytest.mark.parametrize("chunk_size", [2, 5])
@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_calls(call: Any, error: type[Exception], message: str, chunk_size: int) -> None:
    with pytest.raises(error, match=message):
        pycl.cached_step(*call, chunk_size=chunk_size)


@pytest.mark.parametrize("chunk_size", [0, -1, [], [2], [2, 2, 2], [0, 2]], ids=str)
def test_bad_chunk_sizes(chunk_size: Any) -> None:
    with pytest.raises(ValueError, match="chunk_size must be at least 1, or 2 such numbers"):
        pycl.cached_step(cosine, (F, X), (F, X), chunk_size=chunk_size)


@pytest.mark.parametrize("chunk_size", [None, 2.0, True, "ab", [2.0, 2]], ids=str)
def test_chunk_sizes_of_wrong_type(chunk_size: Any) -> None:
    with pytest.raises(TypeError, match="chunk_size must be an integer, or one for each tower"):
        pycl.cached_step(cosine, (F, X), (F, X), chunk_size=chunk_size)


def test_other_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"scaler must be None or a torch\.amp.GradScaler, got int"):
        pycl.cached_step(cosine, (F, X), (F, X), chunk_size=2, scaler=1024)  # type: ignore[arg-type]
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"outside torch\.no_grad"):
        pycl.cached_step(cosine, (F, X), (F, X), chunk_size=2)


def test_an_error_leaves_buffers_and_random_numbers_as_after_the_first_pass() -> None:
    model, calls = Encoder(nn.BatchNorm1d(WIDTH)), []

    def encode(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 8:
            raise KeyError("stop")
        return model(x) + torch.rand(1)

    x = batch(N)
    torch.manual_seed(2)
    with pytest.raises(KeyError):
        pycl.cached_step(lambda z: z.sum(), (encode, x), chunk_size=3)
    got = torch.rand(1)
    assert calls == [3, 3, 3, 2] * 2
    assert model.net[2].num_batches_tracked == 4
    torch.manual_seed(2)
    assert got == torch.stack([torch.rand(1) for _ in range(5)])[4]
