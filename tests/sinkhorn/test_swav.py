# SPDX-License-Identifier: Apache-2.0
"""SwAV from features: potentials without scores, the swapped loss against stored codes, the queue, the modules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.oracle import assert_as_accurate, value_and_gradients, widest
from helpers.sinkhorn_reference import published, swav_from_codes
from torch import Tensor
from torch.nn.functional import normalize

import pycl
from pycl.functional import sinkhorn_potentials, swav

B, K, D = 21, 11, 8


def units(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).to(dtype)


def codes_of(z: Tensor, c: Tensor, u: Tensor, v: Tensor, epsilon: float) -> Tensor:
    return (z.double() @ c.double().T / epsilon + u.double()[:, None] + v.double()).exp()


@pytest.mark.parametrize("iterations", [1, 4])
def test_potentials_give_the_codes(backend: str, iterations: int) -> None:
    dtype = widest(backend)
    z, c = units(B, D, dtype=dtype), units(K, D, dtype=dtype)
    u, v = sinkhorn_potentials(z, c, iterations=iterations, backend=backend)
    assert (u.shape, v.shape, u.dtype, v.dtype) == ((B,), (K,), dtype, dtype)
    truth = published(z.double() @ c.double().T, iterations=iterations)
    eager = published(z @ c.T, iterations=iterations)
    assert_as_accurate(codes_of(z, c, u, v, 0.05), eager, truth, dtype, slack=4)


@pytest.mark.thorough(backend="triton")  # hundreds of sweeps
def test_potentials_normalise_and_take_marginals(backend: str) -> None:
    dtype = widest(backend)
    z, c = torch.randn(B, D, dtype=dtype) * 3, torch.randn(K, D, dtype=dtype)
    a, m = torch.rand(B, dtype=dtype) + 0.1, torch.rand(K, dtype=dtype) + 0.1
    a, m = a / a.sum(), m / m.sum()
    marginals: dict[str, Any] = {"sample_marginal": a, "prototype_marginal": m}
    u, v = sinkhorn_potentials(z, c, epsilon=0.1, iterations=2, normalize=True, backend=backend, **marginals)
    unit_z, unit_c = normalize(z.double(), dim=1), normalize(c.double(), dim=1)
    plan = codes_of(unit_z, unit_c, u, v, 0.1)
    scaled = published(unit_z @ unit_c.T, 0.1, 2, a.double(), m.double()) * (B * a.double()[:, None])
    torch.testing.assert_close(plan, scaled, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)
    u, v = sinkhorn_potentials(z, c, epsilon=0.5, iterations=200, normalize=True, backend=backend, **marginals)
    plan = codes_of(unit_z, unit_c, u, v, 0.5)
    torch.testing.assert_close(plan.sum(0) / B, m.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plan.sum(1) / B, a.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.float64
def test_unbalanced_minimises_its_objective(backend: str) -> None:
    """At the fixed point the gradient of entropy, scores and both divergences vanishes."""
    z, c, epsilon = units(B, D), units(K, D), 0.3
    penalties = {"sample_penalty": 0.7, "prototype_penalty": 0.2}
    u, v = sinkhorn_potentials(z, c, epsilon=epsilon, iterations=400, backend=backend, **penalties)
    scores = z @ c.T
    plan = codes_of(z, c, u, v, epsilon).requires_grad_()
    rows, cols = plan.sum(1), plan.sum(0)
    share = B / K

    def divergence(x: Tensor, target: float) -> Tensor:
        return (x * (x / target).log() - x + target).sum()

    objective = -(plan * scores).sum() + epsilon * (plan * plan.log() - plan).sum()
    objective = objective + 0.7 * divergence(rows, 1.0) + 0.2 * divergence(cols, share)
    (slope,) = torch.autograd.grad(objective, plan)
    assert slope.abs().max() < 1e-9


def test_penalties_reach_from_no_marginal_to_the_marginal(backend: str) -> None:
    dtype = widest(backend)
    z, c = units(B, D, dtype=dtype), units(K, D, dtype=dtype)
    free = sinkhorn_potentials(z, c, epsilon=0.1, iterations=3, prototype_penalty=0.0, backend=backend)
    torch.testing.assert_close(codes_of(z, c, *free, 0.1), (z @ c.T / 0.1).softmax(1).double(), rtol=1e-4, atol=1e-5)
    met, hard = (
        sinkhorn_potentials(z, c, epsilon=0.1, iterations=3, prototype_penalty=p, backend=backend)
        for p in (math.inf, 1e7)
    )
    torch.testing.assert_close(codes_of(z, c, *met, 0.1), codes_of(z, c, *hard, 0.1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_queue", [False, True])
def test_loss_and_gradients(backend: str, dtype: torch.dtype, with_queue: bool) -> None:
    crops = [units(B, D, dtype=dtype) for _ in range(4)]
    prototypes = units(K, D, dtype=dtype)
    queue = units(2, 13, D, dtype=dtype) if with_queue else None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scalars = {"temperature": torch.tensor(0.1, dtype=wide)}

    def of_codes(inputs: list[Tensor], scalars: dict[str, Any]) -> Tensor:
        earlier = None if queue is None else queue.to(inputs[0])
        return swav_from_codes(inputs[:-1], inputs[-1], scalars["temperature"], queue=earlier).mean()

    def ours(inputs: list[Tensor], scalars: dict[str, Any]) -> Tensor:
        return swav(inputs[:-1], inputs[-1], queue=queue, backend=backend, **scalars)

    inputs = [*crops, prototypes]
    exact = [x.double() for x in inputs]
    truth, d_truth = value_and_gradients(of_codes, exact, {"temperature": scalars["temperature"].double()})
    eager, d_eager = value_and_gradients(of_codes, [x.to(wide) for x in inputs], scalars)
    got, d_got = value_and_gradients(ours, inputs, scalars)
    assert got.dtype == wide
    assert_as_accurate(got, eager, truth, dtype, magnitude=10.0)
    for mine, plain, true in zip(d_got, d_eager, d_truth, strict=True):
        # a gradient is a difference of two softmaxes over the temperature
        assert_as_accurate(mine, plain.to(mine.dtype), true, dtype, magnitude=10.0 / B if true.dim() else 100.0)
    assert [g.dtype for g in d_got] == [*[dtype] * 5, wide]


def test_reductions_and_code_crops(backend: str) -> None:
    dtype = widest(backend)
    crops, prototypes = [units(B, D, dtype=dtype) for _ in range(3)], units(K, D, dtype=dtype)
    options: dict[str, Any] = {"temperature": 0.2, "epsilon": 0.1, "backend": backend}
    terms = swav(crops, prototypes, code_crops=(2,), reduction="none", **options)
    exact = [x.double() for x in crops]
    truth = swav_from_codes(exact, prototypes.double(), 0.2, 0.1, (2,))
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(terms.double(), truth, **tolerance)
    for reduction, total in (("sum", truth.sum()), ("mean", truth.mean())):
        value = swav(torch.stack(crops), prototypes, code_crops=(2,), reduction=reduction, **options)
        torch.testing.assert_close(value.double(), total, **tolerance)
    scaled = swav([3 * x for x in crops], 5 * prototypes, code_crops=(2,), normalize=True, **options)
    torch.testing.assert_close(scaled.double(), truth.mean(), **tolerance)


def test_compiles_and_differentiates_once(backend: str) -> None:
    crops = torch.stack([units(B, D, dtype=torch.float32) for _ in range(3)]).requires_grad_()
    prototypes = units(K, D, dtype=torch.float32).requires_grad_()
    expected = torch.autograd.grad(swav(crops, prototypes, backend=backend), [crops, prototypes])
    compiled = torch.compile(lambda z, c: swav(z, c, backend=backend), fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(crops, prototypes), [crops, prototypes])
    for mine, true in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, true)
    (once,) = torch.autograd.grad(swav(crops, prototypes, backend=backend), prototypes, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(once.sum(), crops)


def test_queue_order_and_state() -> None:
    """Earlier features are scored before this step's replace the oldest; nothing takes part until the queue is full."""
    loss, prototypes = pycl.SwAVLoss(queue_size=7, dim=D), units(K, D, dtype=torch.float32)
    seen: list[Tensor] = []
    for step in range(6):
        crops = torch.stack([units(3, D, dtype=torch.float32) for _ in range(3)])
        past = torch.cat(seen, 1)[:, -7:] if step * 3 >= 7 else None
        assert loss(crops, prototypes).item() == pytest.approx(swav(crops, prototypes, queue=past).item(), abs=1e-5)
        seen.append(crops[:2])
        assert loss.queue_pointer is not None
        assert loss.queue_pointer.item() == 3 * (step + 1)
        assert loss.queue is not None
        for row in range(max(0, 3 * step - 4), 3 * (step + 1)):
            assert torch.equal(loss.queue[:, row % 7], torch.cat(seen, 1)[:, row])
    again = pycl.SwAVLoss(queue_size=7, dim=D)
    again.load_state_dict(loss.state_dict())
    assert {"queue", "queue_pointer"} == set(loss.state_dict())
    crops = torch.stack([units(9, D, dtype=torch.float32) for _ in range(2)])
    assert torch.equal(loss(crops, prototypes), again(crops, prototypes))
    assert loss.queue is not None
    assert sorted(loss.queue[0].tolist()) == sorted(crops[0, -7:].tolist())  # of a larger batch, its last rows


def test_modules() -> None:
    assert pycl.SwAVLoss().state_dict() == {}
    prototypes = pycl.Prototypes(D, K)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(K))
    with torch.no_grad():
        prototypes.weight.mul_(3)
    torch.testing.assert_close(prototypes.normalize_().weight.norm(dim=1), torch.ones(K))
    crops = [units(B, D, dtype=torch.float32).requires_grad_() for _ in range(3)]
    torch.testing.assert_close(prototypes(crops[0]), crops[0] @ prototypes.weight.T)
    loss = pycl.SwAVLoss(temperature=0.2, epsilon=0.1, learnable_temperature=True)
    value = loss(crops, prototypes)
    torch.testing.assert_close(value, swav(crops, prototypes.weight, temperature=0.2, epsilon=0.1))
    value.backward()
    assert loss.log_temperature.grad is not None  # type: ignore[union-attr]  # optional parameter
    optimizer = torch.optim.SGD(prototypes.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    before = prototypes.weight.detach().clone()
    prototypes.skip_update()
    optimizer.step()
    assert torch.equal(prototypes.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crops": torch.zeros(1, 4, 3)}, "crops must be at least 2, got 1"),
        ({"crops": torch.zeros(4, 3)}, r"crops must have shape \[V, N, d\]"),
        ({"crops": [torch.zeros(4, 3), torch.zeros(4, 2)]}, r"crops\[1\] must have 3 features as prototypes has"),
        ({"crops": [torch.zeros(4, 3), torch.zeros(5, 3)]}, r"crops\[1\] must have the shape of crops\[0\]"),
        ({"prototypes": torch.zeros(0, 3)}, "prototypes must have shape"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"code_crops": (0, 2)}, "code_crops must be different indices of the 2 crops"),
        ({"code_crops": (0, 0)}, "code_crops must be different"),
        ({"code_crops": ()}, "code_crops must be different"),
        ({"queue": torch.zeros(1, 5, 3)}, "queue must be 2, one for each code crop, got 1"),
        ({"queue": torch.zeros(2, 5, 4)}, r"queue\[0\] must have 3 features"),
        ({"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    arguments = {"crops": torch.ones(2, 4, 3), "prototypes": torch.ones(5, 3)} | options
    with pytest.raises(ValueError, match=message):
        swav(arguments.pop("crops"), arguments.pop("prototypes"), **arguments)


def test_bad_construction() -> None:
    for options, message in (
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"queue_size": 4}, "only with dim >= 1, got 4 with dim=None"),
        ({"queue_size": -1, "dim": 3}, "queue_size must be >= 0"),
        ({"reduction": "max"}, "reduction must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            pycl.SwAVLoss(**options)  # type: ignore[arg-type]  # of mixed types
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        pycl.Prototypes(0, 3)
    z, c = torch.ones(2, 3), torch.ones(4, 3)
    with pytest.raises(ValueError, match="prototype_penalty must be >= 0"):
        sinkhorn_potentials(z, c, prototype_penalty=-1.0)
    with pytest.raises(ValueError, match="prototypes must have 3 features"):
        sinkhorn_potentials(z, torch.ones(4, 2))
