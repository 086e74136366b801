# SPDX-License-Identifier: Apache-2.0
"""The losses under what looks at operators or wraps tensors: torch.func, batched gradients, fake tensors, tracing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.fx.experimental.proxy_tensor import make_fx

import pycl.functional as F
from pycl.testing.table import LOSSES

Loss = Callable[..., Tensor]
N = 12

NAMES = (
    *("nt_xent", "dcl", "sup_con", "mv_dhel", "poly_view", "info_nce", "clip", "siglip"),
    *(
        "info_nce_own_smooth",
        "guided_info_nce_margin",
        "guided_info_nce_guide",
        "soft_info_nce",
        "siglip_ids_per_anchor",
    ),
)


@pytest.fixture(params=NAMES)
def loss(request: pytest.FixtureRequest) -> Loss:
    torch.manual_seed(0)
    return LOSSES[request.param].of_views


@pytest.fixture
def z() -> Tensor:
    return torch.randn(2, N, 8, dtype=torch.float64)


def gradient_of(value: Loss, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    (found,) = torch.autograd.grad(value(z), z)
    return found


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def total_of_terms(loss: Loss) -> Loss:
    return lambda z: loss(z, reduction="none").sum()


@pytest.mark.parametrize("value", ["mean", "terms"])
def test_gradients_of_torch_func(loss: Loss, z: Tensor, value: str) -> None:
    f = loss if value == "mean" else total_of_terms(loss)
    expected = gradient_of(f, z)
    close(torch.func.grad(f)(z), expected)
    found, vjp = torch.func.vjp(f, z)
    close(found, f(z))
    close(vjp(torch.tensor(3.0, dtype=z.dtype))[0], 3 * expected)


def test_rows_of_a_jacobian(loss: Loss, z: Tensor) -> None:
    terms = lambda z: loss(z, reduction="none").flatten()  # noqa: E731
    expected = torch.stack([gradient_of(lambda x, i=i: terms(x)[i], z) for i in range(len(terms(z)))])
    close(torch.func.jacrev(terms)(z), expected)
    close(jacobian(terms, z, vectorize=True), expected)
    leaf = z.clone().requires_grad_()
    unit = torch.eye(len(expected), dtype=z.dtype)
    close(torch.autograd.grad(terms(leaf), leaf, unit, is_grads_batched=True)[0], expected)
    close(jacobian(loss, z, vectorize=True), gradient_of(loss, z))


@pytest.mark.filterwarnings("error::UserWarning")  # of a fall back that is slow
def test_vmap(loss: Loss, z: Tensor) -> None:
    several = torch.stack([z, z.flip(1).cos(), z**2])
    close(torch.vmap(loss)(several), torch.stack([loss(x) for x in several]))
    close(torch.vmap(torch.func.grad(loss))(several), torch.stack([gradient_of(loss, x) for x in several]))
    last = several.movedim(0, -1)
    close(torch.vmap(loss, in_dims=-1)(last), torch.stack([loss(x) for x in several]))


def test_temperatures_of_a_vmap(z: Tensor) -> None:
    temperatures = torch.tensor([0.1, 0.5], dtype=z.dtype)
    found = torch.vmap(lambda t: F.nt_xent(z, temperature=t))(temperatures)
    close(found, torch.stack([F.nt_xent(z, temperature=t) for t in temperatures]))


def test_forward_mode_is_refused(loss: Loss, z: Tensor) -> None:
    def forward_gradient() -> Tensor:
        with forward_ad.dual_level():
            return loss(forward_ad.make_dual(z, z))

    ways = [forward_gradient, lambda: torch.func.jvp(loss, (z,), (z,)), lambda: torch.func.jacfwd(loss)(z)]
    for way in ways:
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            way()
    with forward_ad.dual_level():
        close(loss(z), loss(z.clone()))  # constants are welcome


def test_forward_mode_is_refused_in_a_compiled_graph(z: Tensor) -> None:
    tangent = torch.compile(lambda x, v: torch.func.jvp(F.nt_xent, (x,), (v,)), backend="eager")
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        tangent(z, z)


def test_a_second_derivative_is_refused(loss: Loss, z: Tensor) -> None:
    slope = lambda x: torch.func.grad(loss)(x).sum()  # noqa: E731
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.func.grad(slope)(z)
    leaf = z.clone().requires_grad_()
    terms = loss(leaf, reduction="none")
    weights = torch.ones_like(terms, requires_grad=True)
    (gradient,) = torch.autograd.grad(terms, leaf, weights, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(gradient.sum(), weights)  # of the weights alone: they are in the graph, too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_fake_tensors(loss: Loss, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        z = torch.randn(2, N, 8, dtype=dtype, requires_grad=True)
        (found,) = torch.autograd.grad(loss(z), z)
    assert isinstance(found, FakeTensor)
    assert (found.shape, found.dtype) == (z.shape, dtype)


def test_a_traced_gradient(loss: Loss, z: Tensor) -> None:
    leaf = z.clone().requires_grad_()
    graph = make_fx(lambda x: torch.autograd.grad(loss(x), x)[0])(leaf)
    other = (z**2).requires_grad_()
    close(graph(other), gradient_of(loss, other))


@pytest.mark.parametrize("change", ["zero_", "data"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_gradient_that_was_handed_out_may_be_changed(loss: Loss, change: str, dtype: torch.dtype) -> None:
    """The graph is kept, the first gradient changed in place: by its owner, or behind autograd's back."""
    leaves = [torch.randn(N, 8, dtype=dtype, requires_grad=True) for _ in range(2)]
    value = loss(torch.stack(leaves))
    value.backward(retain_graph=True)
    first = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        (leaf.grad if change == "zero_" else leaf.grad.data).zero_()
    value.backward()
    for leaf, expected in zip(leaves, first, strict=True):
        assert torch.equal(leaf.grad, expected)


def test_a_direction_that_is_normalised_in_place(loss: Loss) -> None:
    delta = torch.randn(2, N, 8, requires_grad=True)
    value = loss(delta)
    (direction,) = torch.autograd.grad(value, delta, retain_graph=True)
    expected = direction.clone()
    direction.div_(direction.norm())
    value.backward()
    assert torch.equal(delta.grad, expected)
