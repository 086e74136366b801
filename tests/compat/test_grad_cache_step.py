# SPDX-License-Identifier: Apache-2.0
"""GradCache's class and its functions in pycl.compat.grad_cache: against the library, and against the plain step."""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from grad_cache_peer import declare_grad_cache, grad_cache
from parity import embeddings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

declare_grad_cache()

from pycl.compat import grad_cache as ours  # noqa: E402
from pycl.compat.grad_cache import _alone, functional, loss  # noqa: E402


class Tower(nn.Module):
    """Takes one tensor or two, by name or not, and draws random numbers."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 4)).double()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.net(ids if mask is None else ids * mask)


X, Y, MASK = embeddings(11, 5, 1), embeddings(11, 5, 2), embeddings(11, 5, 3)
SPLIT = {"split_input_fn": lambda given, size: [given[k : k + size].flip(1) for k in range(0, len(given), size)]}
WRAPPED = {"get_rep_fn": lambda out: 2 * out}
STEPS: dict[str, tuple[dict[str, Any], tuple[Any, Any], dict[str, Any]]] = {
    "tensors": ({"chunk_sizes": 4}, (X, Y), {}),
    "two sizes": ({"chunk_sizes": [3, 11]}, (X, Y), {}),
    "one chunk": ({"chunk_sizes": 16}, (X, Y), {"reduction": "sum"}),
    "lists": ({"chunk_sizes": 4}, ([X, MASK], [Y]), {}),
    "mappings": ({"chunk_sizes": 4}, ({"ids": X, "mask": MASK}, UserDict(ids=Y)), {"reduction": "sum"}),
    "both": ({"chunk_sizes": 4}, (([X], {"mask": MASK}), Y), {}),
    "own split": ({"chunk_sizes": 4, **SPLIT}, (X, Y), {}),
    "own representation": ({"chunk_sizes": 4, **WRAPPED}, (X, Y), {}),
    "scaled": ({"chunk_sizes": 4, "fp16": True, "scaler": torch.amp.GradScaler("cpu", init_scale=8.0)}, (X, Y), {}),
    "a scaler that is not asked": ({"chunk_sizes": 4, "scaler": torch.amp.GradScaler("cpu")}, (X, Y), {}),
}


def step(module: Any, losses: Any, name: str, tied: bool = False, kind: Any = None) -> list[Tensor]:
    """Value, gradients and the random numbers that come next."""
    options, inputs, loss_kwargs = STEPS[name]
    models = [Tower()] * 2 if tied else [Tower(), Tower(0.0)]
    torch.manual_seed(1)
    run = (kind or module.GradCache)(models, loss_fn=losses.SimpleContrastiveLoss(), **options)
    value = run(*inputs, **loss_kwargs)
    assert not value.requires_grad
    return [value, *(p.grad for model in models for p in model.parameters()), torch.rand(3)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.filterwarnings("ignore:User provided device_type", "ignore:.*torch.cuda.amp.autocast")
def test_step_live(name: str, tied: bool) -> None:
    library = grad_cache("grad_cache")
    assert issubclass(ours.GradCache, library.GradCache)
    torch.testing.assert_close(step(ours, loss, name, tied), step(library, grad_cache("loss"), name, tied))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.filterwarnings("ignore:User provided device_type", "ignore:.*torch.cuda.amp.autocast")
def test_step_is_the_plain_step(name: str) -> None:
    """Without random numbers all that a step differs in is its memory."""
    options, inputs, loss_kwargs = STEPS[name]
    models = [Tower(0.0), Tower(0.0)]
    value = ours.GradCache(models, loss_fn=loss.SimpleContrastiveLoss(), **options)(*inputs, **loss_kwargs)
    found = [p.grad for model in models for p in model.parameters()]
    z = []
    for model, given in zip(models, inputs, strict=True):
        args, named = (given, {}) if isinstance(given, list) else ((), given)
        args, named = (args, named) if isinstance(named, (dict, UserDict)) else ((named,), {})
        args, named = args[0] if args and isinstance(args[0], tuple) else (args, named)
        out = model(*(x.flip(1) if "split_input_fn" in options else x for x in args), **named)
        z.append(options.get("get_rep_fn", lambda out: out)(out))
    terms = cross_entropy(z[0] @ z[1].t(), torch.arange(11), **loss_kwargs)
    factor = 8.0 if options.get("fp16") else 1.0
    wanted = torch.autograd.grad(factor * terms, [p for model in models for p in model.parameters()])
    torch.testing.assert_close(value, terms.detach())
    torch.testing.assert_close(found, list(wanted))


METHODS = {
    "split_inputs": (lambda out: [2 * x for x in out], False),
    "model_call": (lambda out: 3 * out, False),
    "get_reps": (lambda out: 3 * out, False),
    "compute_loss": (lambda out: 2 * out, False),
    "build_cache": (lambda out: ([2 * g for g in out[0]], out[1]), True),
    "forward_no_grad": (lambda out: (2 * out[0], out[1]), True),
    "forward_backward": (lambda out: out, True),
}


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize("name", METHODS)
def test_an_overridden_method_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library, (change, falls_back) = grad_cache("grad_cache"), METHODS[name]
    kinds = [overridden(m.GradCache, name, change) for m in (ours, library)]
    mine, theirs = (step(None, loss, "tensors", kind=kind) for kind in kinds)
    torch.testing.assert_close(mine, theirs)
    if falls_back:
        monkeypatch.setenv("PYCL_STRICT", "1")
        with pytest.raises(RuntimeError, match=f"has a {name} of its own"):
            step(None, loss, "tensors", kind=kinds[0])


def overridden(kind: type, name: str, change: Callable[..., Any]) -> type:
    original = getattr(kind, name)
    return type("Own", (kind,), {name: lambda self, *args, **options: change(original(self, *args, **options))})


def test_signatures_and_attributes() -> None:
    theirs = grad_cache("grad_cache").GradCache
    for mine in (ours.GradCache, _alone.GradCache):
        for method in ("__init__", "__call__", "cache_step"):
            found = [inspect.signature(getattr(c, method)).parameters.values() for c in (mine, theirs)]
            assert [(p.name, p.default, p.kind) for p in found[0]] == [(p.name, p.default, p.kind) for p in found[1]]
        assert vars(mine([], 3, print)) == vars(theirs([], 3, print))
        assert {n for n in vars(theirs) if not n.startswith("__")} <= set(dir(mine))
    for name in functional.__all__:
        mine, other = (getattr(m, name) for m in (functional, grad_cache("functional")))
        assert [*inspect.signature(mine).parameters] == [*inspect.signature(other).parameters]


class Counting(nn.Module):
    """A buffer that counts the rows that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x * self.weight


def test_buffers_update_once() -> None:
    model = Counting()
    ours.GradCache([model], 4, lambda z: z.square().sum())(X)
    assert model.seen == len(X)
    torch.testing.assert_close(model.weight.grad, 2 * X.square().sum(0))


@pytest.mark.parametrize(
    ("options", "inputs", "error", "said"),
    [
        ({"fp16": True}, (X, Y), AssertionError, "scaler"),
        ({}, ("text", Y), NotImplementedError, "type"),
        ({"get_rep_fn": lambda out: (out, out)}, (X, Y), TypeError, "must be a tensor, got tuple"),
        ({"loss_fn": lambda x, y: x @ y.t()}, (X, Y), ValueError, "one number"),
    ],
)
def test_wrong_calls_of_a_step(options: dict[str, Any], inputs: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ours.GradCache(**({"models": [Tower(), Tower()], "chunk_sizes": 4, "loss_fn": cosine} | options))(*inputs)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return -torch.nn.functional.cosine_similarity(x, y).sum()


def test_no_sync_needs_distributed_data_parallel() -> None:
    with pytest.raises(AssertionError, match="DistributedDataParallel"):
        ours.GradCache([Tower()], 4, lambda z: z.sum())(X, no_sync_except_last=True)


def accumulate(module: Any) -> list[Tensor]:
    """The functional form: chunks whose activations are not kept."""
    tower = Tower()
    torch.manual_seed(1)

    @module.cached
    def call(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        z = model(x)
        return z, 2 * z

    @module.cat_input_tensor
    def contrast(x: list[Tensor], y: list[Tensor]) -> Tensor:
        return cross_entropy(x @ y.t(), torch.arange(len(x)))

    cache_x, cache_y, closures = [], [], []
    for chunk in X.split(4):
        x, y, closure = call(tower, chunk)
        cache_x.append(x)
        cache_y.append(y)
        closures.append(closure)
    value = contrast(cache_x, cache_y)
    value.backward()
    for x, y, closure in zip(cache_x, cache_y, closures, strict=True):
        closure((x, y))
    return [value.detach(), *(p.grad for p in tower.parameters()), torch.rand(3)]


def test_functional_live() -> None:
    torch.testing.assert_close(accumulate(functional), accumulate(grad_cache("functional")))


def test_keyword_arguments_are_joined() -> None:
    """GradCache's own unpacks each value as a name and a value."""
    joined = functional.cat_input_tensor(lambda x, y, scale: (x, y, scale))
    x, y, scale = joined([X, Y], y=[Y, X], scale=[1, 2])
    assert torch.equal(x, torch.cat([X, Y]))
    assert torch.equal(y, torch.cat([Y, X]))
    assert scale == [1, 2]
