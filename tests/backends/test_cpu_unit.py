# SPDX-License-Identifier: Apache-2.0
"""Rows at unit length: the operator of the CPU against the formula, and where the formula is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.global_settings import threads
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import jvp, vjp, vmap
from torch.testing import assert_close

from pycl.backends.registry import why_not
from pycl.core.unit import unit as formula
from pycl.functional._common import unit

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu

INF, NAN = float("inf"), float("nan")
EDGES = {  # sizes of rows: what fits a dtype, in whose squares its range ends, and around eps
    torch.float16: [6e-8, 1e-4, 6e4],
    torch.bfloat16: [1e-40, 1e-30, 1e-12, 1e30, 3e38],
    torch.float32: [1e-44, 1e-40, 1e-30, 9e-13, 1.1e-12, 1e-8, 1e19, 1e30, 3e38],
    torch.float64: [5e-324, 1e-320, 1e-300, 1e-160, 9e-13, 1.1e-12, 1e-8, 1e99, 1e160, 1e299, 1e301, 1.7e308],
}
DTYPES = list(EDGES)


def rows(dtype: torch.dtype, d: int) -> Tensor:
    """Of common sizes, of every size at an edge, zero, and one entry at an edge among common ones."""
    sizes = [1.0, 1.0, *EDGES[dtype], 0.0]
    z = torch.rand(len(sizes), d, dtype=torch.float64) - 0.5
    z = z / z.abs().amax(1, keepdim=True) * torch.tensor(sizes, dtype=torch.float64)[:, None]
    mixed = torch.rand(len(sizes), d, dtype=torch.float64)
    mixed[:, 0] = torch.tensor(sizes, dtype=torch.float64)
    return torch.cat([z, mixed]).to(dtype)


def value_and_gradient(function: Callable[[Tensor], Tensor], z: Tensor, d_unit: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = function(z)
    return value.detach(), torch.autograd.grad(value, z, d_unit)[0]


def both(z: Tensor, **more: Any) -> None:
    """The operator returns what the formula does, value and gradient."""
    d_unit = torch.randn_like(formula(z))
    for found, wanted in zip(*(value_and_gradient(f, z, d_unit) for f in (unit, formula)), strict=True):
        assert found.dtype == wanted.dtype
        assert_close(found, wanted, **more)


@pytest.mark.parametrize("d", [1, 3, 17, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_float64(isa: str, dtype: torch.dtype, d: int) -> None:
    z = rows(dtype, d)
    d_unit = torch.randn(z.shape, dtype=formula(z).dtype)
    value, gradient = value_and_gradient(unit, z, d_unit)
    exact, exact_gradient = value_and_gradient(formula, z.double(), d_unit.double())
    if dtype == torch.float16:
        exact_gradient[(z == 0).all(1)] = 0  # 1 / eps is beyond it
    assert value.dtype == d_unit.dtype
    assert gradient.dtype == dtype
    assert value.isfinite().all()
    eps, tiny = torch.finfo(value.dtype).eps, torch.finfo(value.dtype).smallest_normal
    own = 8 * eps if dtype == torch.float64 else 0  # what the formula itself may be off by
    assert_close(value.double(), exact, rtol=2 * eps + own, atol=tiny)
    # the two terms of a gradient, which may nearly cancel, are of this size
    size = d_unit.double().abs().amax(1) / z.double().abs().amax(1).clamp_min(1e-12)
    for found, wanted, scale in zip(gradient, exact_gradient, size, strict=True):
        close = {"rtol": torch.finfo(dtype).eps + own, "atol": 4 * eps * float(scale) + tiny}
        assert_close(found.double(), wanted.to(dtype).double(), **close)


@pytest.mark.parametrize("entry", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number(isa: str, dtype: torch.dtype, entry: float) -> None:
    """Makes a row NaN, and no other."""
    z = torch.randn(4, 19).to(dtype)
    z[1, 3] = entry
    z[3] = entry
    found = value_and_gradient(unit, z, torch.randn(z.shape, dtype=formula(z).dtype))
    for x, wanted in zip(found, value_and_gradient(formula, z, found[0].nan_to_num()), strict=True):
        assert torch.equal(x.isnan(), wanted.isnan())
        assert x[[1, 3]].isnan().all()
        assert x[[0, 2]].isfinite().all()


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(17, 9).T,
    "every_second_feature": lambda: torch.randn(9, 34)[:, ::2],
    "of_wider_rows": lambda: torch.randn(9, 40)[:, 5:22],
    "one_row_for_all": lambda: torch.randn(1, 17).expand(9, 17),
    "one_feature_for_all": lambda: torch.randn(9, 1).expand(9, 17),
    "views": lambda: torch.randn(2, 9, 17),
    "views_beside": lambda: torch.randn(9, 2, 17).transpose(0, 1),
    "features_first": lambda: torch.randn(17, 2, 9).permute(1, 2, 0),
    "one_point": lambda: torch.randn(17),
    "four": lambda: torch.randn(2, 3, 4, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    z = LAYOUTS[layout]()
    wanted = value_and_gradient(unit, z.contiguous(), torch.ones(z.shape))
    found = value_and_gradient(unit, z, torch.ones(()).expand(z.shape))
    assert all(map(torch.equal, found, wanted))
    both(z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads(dtype: torch.dtype) -> None:
    """A row has one worker: their number changes nothing."""
    z, d_unit = torch.randn(1201, 129).to(dtype), torch.randn(1201, 129)
    with threads(1):
        wanted = value_and_gradient(unit, z, d_unit.to(formula(z).dtype))
    with threads(3):
        found = value_and_gradient(unit, z, d_unit.to(formula(z).dtype))
    assert all(map(torch.equal, found, wanted))


def test_second_derivatives() -> None:
    z, weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(unit, z)
    assert torch.autograd.gradgradcheck(unit, z)
    assert torch.autograd.gradgradcheck(lambda z: unit(z.tanh()), z)
    found = []
    for function in (unit, formula):
        (first,) = torch.autograd.grad((function(z) * weight).sum(), z, create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), z)))
    assert_close(*found)


def test_a_hook_sees_one_gradient() -> None:
    """Also where the backward differentiates the formula."""
    for create_graph in (False, True):
        seen: list[Tensor] = []
        z = torch.randn(4, 3, requires_grad=True)
        z.register_hook(seen.append)
        torch.autograd.grad(unit(z).sum(), z, create_graph=create_graph)
        assert len(seen) == 1


def test_many_gradients_at_once() -> None:
    """Over the backward of an eager forward, the legacy vmap of is_grads_batched and the present one."""
    z, d_units = torch.randn(4, 3, requires_grad=True), torch.randn(5, 4, 3)
    wanted = torch.stack([value_and_gradient(formula, z, d)[1] for d in d_units])
    value = unit(z)
    (found,) = torch.autograd.grad(value, z, d_units, is_grads_batched=True, retain_graph=True)
    assert_close(found, wanted)
    assert_close(vmap(lambda d: torch.autograd.grad(value, z, d, retain_graph=True)[0])(d_units), wanted)


def test_a_tangent_of_the_gradient() -> None:
    z, d_unit, tangent = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3), torch.randn(4, 3)
    value = unit(z)
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(value, z, forward_ad.make_dual(d_unit, tangent))
        assert_close(forward_ad.unpack_dual(found).tangent, value_and_gradient(formula, z, tangent)[1])


def test_compiled_autograd() -> None:
    torch.compiler.reset()
    z, d_unit = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    value = unit(z)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        (found,) = torch.autograd.grad(value, z, d_unit)
    assert_close(found, value_and_gradient(formula, z, d_unit)[1])


def dual(function: Callable[[Tensor], Tensor], z: Tensor, tangent: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(z, tangent))).tangent


def compiled(function: Callable[[Tensor], Tensor], z: Tensor, d_unit: Tensor) -> tuple[Tensor, Tensor]:
    torch.compiler.reset()
    return value_and_gradient(torch.compile(function, fullgraph=True, backend="aot_eager"), z, d_unit)


class Subclass(Tensor):
    pass


OBSERVERS: dict[str, Callable[..., Any]] = {
    "vmap": lambda f, z, d: vmap(f)(torch.stack([z, d])),
    "vjp": lambda f, z, d: vjp(f, z)[1](d),
    "jvp": lambda f, z, d: jvp(f, (z,), (d,)),
    "forward_ad": dual,
    "compile": compiled,
    "subclass": lambda f, z, d: f(z.as_subclass(Subclass)),
}


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observers_see_the_formula(observer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cpu._C, "unit")
    z, d_unit = torch.randn(4, 3), torch.randn(4, 3)
    assert_close(OBSERVERS[observer](unit, z, d_unit), OBSERVERS[observer](formula, z, d_unit))


def test_another_backend_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(4, 3)
    monkeypatch.setenv("PYCL_BACKEND", "reference")
    with monkeypatch.context() as without:
        without.delattr(cpu._C, "unit")
        assert_close(unit(z), formula(z))
    for name in ("cpu", ""):
        monkeypatch.setenv("PYCL_BACKEND", name)
        with monkeypatch.context() as without:
            without.delattr(cpu._C, "unit")
            with pytest.raises(AttributeError, match="unit"):
                unit(z)


def test_fake_tensors() -> None:
    with FakeTensorMode() as mode:
        assert unit(mode.from_tensor(torch.randn(4, 3, dtype=torch.float16))).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    z = torch.randn(2, 4, 3).to(dtype)
    torch.library.opcheck(torch.ops.pycl.unit.default, (z, "cpu"))
    torch.library.opcheck(torch.ops.pycl.unit_backward.default, (z, torch.randn_like(formula(z)), "cpu"))


def test_without_a_gradient() -> None:
    z = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = unit(z)
            assert not found.requires_grad
            assert_close(found, formula(z))


def test_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        both(torch.randn(4, 3, dtype=torch.bfloat16))
        both(torch.randn(4, 3))


@pytest.mark.parametrize("shape", [(0, 3), ()], ids=str)
def test_without_a_row(shape: tuple[int, ...]) -> None:
    both(torch.randn(shape))
