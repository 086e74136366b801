# SPDX-License-Identifier: Apache-2.0
"""Scores from features, few of them stored and many swept: the same potentials."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

import pycl
from pycl.backends.registry import why_not
from pycl.functional import sinkhorn_potentials, swav
from pycl.functional._common import unit

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu, workspace


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the scores that prototype steps read, alone or all iterations at once."""
    sizes: list[int] = []
    one, every = cpu.sinkhorn_columns, cpu.sinkhorn
    monkeypatch.setattr(cpu, "sinkhorn_columns", lambda t, v: (sizes.append(t.scores.numel()), one(t, v))[1])
    monkeypatch.setattr(cpu, "sinkhorn", lambda t: (sizes.extend([t.scores.numel()] * t.iterations), every(t))[1])
    return sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("epsilon", [0.05, 0.003])
@pytest.mark.parametrize("given", ["plain", "marginals", "normalize"])
def test_potentials(given: str, epsilon: float, dtype: torch.dtype, stored: list[int]) -> None:
    z, c = (normalize(torch.randn(n, 24), dim=1).to(dtype) for n in (131, 77))
    options: dict[str, Any] = {"normalize": True} if given == "normalize" else {}
    if given == "marginals":
        a, m = torch.rand(131).double() + 0.1, torch.rand(77).double() + 0.1
        options = {"sample_marginal": a / a.sum(), "prototype_marginal": m / m.sum()}
    if given == "normalize":
        z = z * 30
    few = sinkhorn_potentials(z, c, epsilon=epsilon, backend="cpu", **options)
    assert stored == [131 * 77] * 3
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    z, c = z.to(wide), c.to(wide)  # a sweep rounds normalised bfloat16 to bfloat16
    with pycl.set_workspace(0):
        swept = sinkhorn_potentials(z, c, epsilon=epsilon, backend="cpu", **options)
    for one, other in zip(few, swept, strict=True):
        assert one.dtype == other.dtype == wide
        atol = 1e-12 if dtype == torch.float64 else 1e-6 / epsilon
        assert_close(one, other, rtol=0, atol=atol)


def test_swav_and_its_gradients(stored: list[int]) -> None:
    crops = normalize(torch.randn(4, 19, 16), dim=-1).requires_grad_()
    prototypes = normalize(torch.randn(33, 16), dim=-1).requires_grad_()
    queue = normalize(torch.randn(2, 40, 16), dim=-1)

    def run() -> list[Tensor]:
        loss = swav(crops, prototypes, queue=queue, backend="cpu")
        return [loss, *torch.autograd.grad(loss, [crops, prototypes])]

    few = run()
    assert stored == [(19 + 40) * 33] * 6
    with pycl.set_workspace(0):
        assert_close(few, run(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, True), *((one, False) for one in (torch.float32, torch.float64, torch.bfloat16, torch.float16))],
    ids=str,
)
@pytest.mark.parametrize("queue", [False, True])
def test_means_of_kept_codes(queue: bool, dtype: torch.dtype, autocast: bool, stored: list[int]) -> None:
    """One product with the codes in place of the engine's average, of terms with weights of their own."""
    crops = normalize(torch.randn(3, 21, 16), dim=-1).to(dtype).requires_grad_()
    prototypes = normalize(torch.randn(35, 16), dim=-1).to(dtype).requires_grad_()
    earlier = normalize(torch.randn(2, 40, 16), dim=-1).to(dtype) if queue else None
    weights = torch.rand(21)

    def run() -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            terms = swav(crops, prototypes, queue=earlier, reduction="none", backend="cpu")
        return [terms, *torch.autograd.grad(terms @ weights.to(terms.dtype), [crops, prototypes])]

    few = run()
    assert len(stored) == 6
    with pycl.set_workspace(0):
        swept = run()
    half = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    for one, other in zip(few, swept, strict=True):
        assert one.dtype == other.dtype
        assert_close(one, other, rtol=max(1e-4, 2 * half), atol=max(1e-6, half * float(other.abs().max())))


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize("wide", ["crops", "prototypes"])
def test_crops_and_prototypes_of_two_dtypes(wide: str, queue: bool) -> None:
    """All steps run in the wider one, the targets of the prototypes with them."""
    dtypes = {"crops": torch.float32, "prototypes": torch.float32} | {wide: torch.float64}
    crops = normalize(torch.randn(3, 21, 16), dim=-1).to(dtypes["crops"])
    prototypes = normalize(torch.randn(35, 16), dim=-1).to(dtypes["prototypes"])
    earlier = normalize(torch.randn(2, 40, 16), dim=-1).to(dtypes["crops"]) if queue else None
    found = swav(crops, prototypes, queue=earlier, backend="cpu")
    right = swav(crops.double(), prototypes.double(), queue=None if earlier is None else earlier.double())
    assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


def test_kept_codes_are_in_the_budget() -> None:
    """As long as the graph lives; the second code crop has what the first has left."""
    crops, prototypes = torch.randn(2, 19, 16), torch.randn(33, 16, requires_grad=True)
    size = 19 * 33 * 4
    with pycl.set_workspace(2 * size - 1):
        loss = swav(crops, prototypes, backend="cpu")
        assert workspace.left() < size
        loss.backward()
        del loss
        assert workspace.left() == 2 * size - 1


def test_under_autocast(stored: list[int]) -> None:
    z, c = torch.randn(9, 5), torch.randn(7, 5)
    right = sinkhorn_potentials(z, c, epsilon=1.0, backend="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(sinkhorn_potentials(z, c, epsilon=1.0, backend="cpu"), right, rtol=0, atol=0)
    assert len(stored) == 6


def test_what_is_swept(stored: list[int]) -> None:
    z, c = torch.randn(9, 5), torch.randn(7, 5)
    for penalty in ("sample_penalty", "prototype_penalty"):
        sinkhorn_potentials(z, c, epsilon=1.0, backend="cpu", **{penalty: 2.0})
    sinkhorn_potentials(z, c, epsilon=1.0, backend="reference")
    with pycl.set_workspace(9 * 7 * 4 - 1):
        sinkhorn_potentials(z, c, epsilon=1.0, backend="cpu")
    assert not stored


@pytest.mark.parametrize("size", [1e-30, 1e-38, 1e-40, 1e-42, 1e-44])
def test_units_of_tiny_rows(size: float) -> None:
    """Below 1e-12 a row is divided by that, in the range of denormal numbers too."""
    z = (torch.tensor([[1.0, 2.0, -3.0, 0.5]]) * size).requires_grad_()
    found = unit(z)
    torch.testing.assert_close(found, z.detach() / 1e-12, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(found[0, 1], z)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 1e12, 0.0, 0.0]]), rtol=1e-5, atol=0)
