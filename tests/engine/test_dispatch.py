# SPDX-License-Identifier: Apache-2.0
"""Calls that go straight to a backend: never where torch's dispatcher would make something else of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pycl.functional as F
from pycl import Pairs, Points, pair_average, pair_stats
from pycl.backends.registry import why_not
from pycl.ops import schemas

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fused": lambda x, y: F.clip(x, y, 3.0),
    "terms": lambda x, y: F.clip(x, y, 3.0, reduction="none"),
    "sum": lambda x, y: F.siglip(x, y, 3.0, -1.0, reduction="none"),
    "stats": lambda x, y: pair_stats(Points(x), Points(y), denominator=Pairs.ALL).lse,
    "average": lambda x, y: pair_average(Points(x), Points(y), y),
    "normalized": lambda x, y: F.nt_xent([x, y]),
    "sinkhorn": lambda x, y: F.sinkhorn(x),
    "swav": lambda x, y: F.swav([x, x.flip(0)], y),
}


def points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.nn.functional.normalize(torch.randn(2, 40, 16, generator=generator), dim=2)
    return x, y


def minus(x: Tensor) -> Tensor:
    """The same numbers, as the negative of what is in memory."""
    found = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert found.is_neg()
    assert torch.equal(found, x)
    return found


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("grad", [True, False])
def test_a_tensor_that_stands_for_minus_its_memory(loss: str, grad: bool) -> None:
    def everything(form: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x, y = points()
        x, y = form(x).detach().requires_grad_(grad), form(y).detach().requires_grad_(grad)
        value = LOSSES[loss](x, y)
        return [value.detach(), *(torch.autograd.grad(value.sum(), (x, y)) if value.requires_grad else ())]

    for one, other in zip(everything(minus), everything(Tensor.clone), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_that_stand_for_minus_their_memory() -> None:
    x, y = (z.requires_grad_() for z in points())
    terms = LOSSES["terms"](x, y)
    weights = torch.linspace(1, 2, len(terms))
    found, right = (torch.autograd.grad(terms, x, w, retain_graph=True)[0] for w in (minus(weights), weights))
    torch.testing.assert_close(found, right)


class Seen(Tensor):
    """A class that writes down which operators it meets."""

    names: list[str] = []  # noqa: RUF012  # of all its tensors

    @staticmethod
    def __new__(cls: type[Seen], inner: Tensor) -> Seen:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]  # no stub
        made.inner = inner
        return made  # type: ignore[no-any-return]  # the same

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.names.append(str(function))
        plain = torch.utils._pytree.tree_map_only(Seen, lambda x: x.inner, (args, kwargs or {}))
        return function(*plain[0], **plain[1])


@torch.no_grad()
@pytest.mark.parametrize(("loss", "operator"), [("fused", "pair_stats"), ("sum", "pair_sum")])
def test_a_tensor_of_another_class_meets_the_operator(loss: str, operator: str) -> None:
    x, y = points()
    Seen.names.clear()
    found = LOSSES[loss](Seen(x), Seen(y))
    torch.testing.assert_close(found, LOSSES[loss](x, y))
    assert f"pycl.{operator}.default" in Seen.names


def test_a_mode_sees_every_operator() -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    x, y = (z.requires_grad_() for z in points())
    with Mode():
        LOSSES["fused"](x, y).backward()
    assert {"pycl.pair_stats.default", "pycl.pair_stats_backward.default"} <= set(names)


def test_a_profile_names_operators() -> None:
    x, y = (z.requires_grad_() for z in points())
    with torch.profiler.profile() as profile:
        LOSSES["terms"](x, y).sum().backward()
    assert {"pycl::pair_stats", "pycl::pair_stats_backward"} <= {event.key for event in profile.key_averages()}


@torch.no_grad()
def test_a_trace_is_of_the_loss_and_not_of_its_value() -> None:
    x, y = points()
    traced = torch.jit.trace(LOSSES["fused"], (x, y))
    torch.testing.assert_close(traced(2 * x, y), LOSSES["fused"](2 * x, y))


def test_nobody_else_pays_for_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (z.requires_grad_() for z in points())
    plain = LOSSES["terms"](x, y)

    def never(*_: Any) -> Any:
        raise AssertionError("through the dispatcher")

    for name in vars(schemas.operators):
        monkeypatch.setattr(torch.ops.pycl, name, never)
    again = LOSSES["terms"](x, y)
    assert torch.equal(plain, again)
    again.sum().backward()
