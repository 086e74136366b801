# SPDX-License-Identifier: Apache-2.0
"""Feature Transformation: what is drawn, its special cases, and statistics that keep their digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.functional import info_nce
from pycl.objectives import feature_transform, score_statistics


def batch(n: int = 6, k: int = 9, d: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(m, d, dtype=torch.float64) for m in (n, n, k))


def test_factors_of_one_are_moco() -> None:
    query, key, queue = batch()
    found = feature_transform(query, key, queue, temperature=0.2, positive=1, negative=1)
    torch.testing.assert_close(found, info_nce(query, key, negatives=queue, temperature=0.2), rtol=1e-12, atol=1e-12)


def test_a_larger_factor_makes_a_harder_positive() -> None:
    """<q', k'> = s + 2 p (p - 1) (s - 1): with one query and a queue at right angles the value tells it."""
    query, key, queue = torch.eye(4, dtype=torch.float64)[[0, 0, 3]].split(1)
    query = query + torch.tensor([0, 1.0, 0, 0])
    s, p = torch.tensor(0.5, dtype=torch.float64).sqrt(), 1.7
    value = feature_transform(query, key, queue, temperature=1.0, positive=p, negative=0.3)
    torch.testing.assert_close(value, torch.nn.functional.softplus(-(s + 2 * p * (p - 1) * (s - 1))))


def test_what_is_drawn_is_drawn_from_the_generator_in_order() -> None:
    query, key, queue = batch()

    def value(seed: int, **given: Any) -> float:
        generator = torch.Generator().manual_seed(seed)
        return feature_transform(query, key, queue, temperature=0.2, generator=generator, **given).item()

    state = torch.get_rng_state()
    assert value(1) == value(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({value(seed) for seed in range(5)}) == 5
    permutation = torch.randperm(9)
    draws = {"positive": 1.5, "negative": 0.4, "permutation": permutation}
    for name in draws:  # each of the three alone is random, and nothing is once all are given
        given = {other: x for other, x in draws.items() if other != name}
        assert value(1, **given) != value(2, **given)
    assert value(1, **draws) == value(2, **draws)
    generator = torch.Generator().manual_seed(3)
    p, n = (torch._sample_dirichlet(torch.full((2,), a, dtype=torch.float64), generator)[0] for a in (2.0, 1.6))
    again = {"positive": 1 + p, "negative": n, "permutation": torch.randperm(9, generator=generator)}
    assert value(3) == value(0, **again)


def test_factors_come_from_their_distributions() -> None:
    """Recovered from the value: with a queue of one entry and its negative as partner, or without a queue's part."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.eye(3, dtype=torch.float64)[:2].split(1)
    far = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)  # at right angles to both: its logit is 0

    def positive() -> Tensor:  # softplus(-s') with s' = -2 p (p - 1)
        value = feature_transform(query, key, far, temperature=1.0, negative=1.0, generator=generator)
        return (1 + (1 + 2 * value.expm1().log()).sqrt()) / 2

    drawn = torch.stack([positive() for _ in range(2000)])
    assert 1 < drawn.min() < 1.1
    assert 1.9 < drawn.max() < 2
    assert abs(drawn.mean() - 1.5) < 0.02
    assert abs(drawn.var() - 1 / 20) < 0.005

    queue = torch.cat([query, far])

    def negative() -> Tensor:  # logits n and 1 - n beside 1: log(e + e^n + e^(1 - n)) - 1
        value = feature_transform(
            query, query, queue, temperature=1.0, permutation=torch.tensor([1, 0]), generator=generator
        )
        pair = ((value + 1).exp() - torch.e) / (2 * torch.tensor(0.5).exp())  # cosh(n - 1/2)
        return pair.clamp_min(1).arccosh()

    away = torch.stack([negative() for _ in range(2000)])
    assert away.max() < 0.5
    assert abs(away.square().mean() - 1 / 16.8) < 0.005  # the variance of Beta(1.6, 1.6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"positive": float("inf")}, ValueError, "positive must be finite, got inf"),
        ({"negative": float("nan")}, ValueError, "negative must be finite, got nan"),
        ({"positive": "1"}, TypeError, "positive must be a number"),
        ({"permutation": torch.arange(8)}, ValueError, r"permutation must have shape \[9\]"),
        (
            {"permutation": torch.arange(9) + 1},
            ValueError,
            "permutation must be .* less than 9, .* from 1 to 9",
        ),
        ({"permutation": torch.arange(9.0)}, TypeError, "permutation must be an integer tensor"),
        ({"key": torch.randn(5, 5)}, ValueError, "query and key must have one and the same shape"),
        ({"queue": torch.randn(9, 4)}, ValueError, "queue must have 5 features"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    query, key, queue = batch()
    with pytest.raises(error, match=message):
        feature_transform(**{"query": query, "key": key, "queue": queue, **given})


def test_the_factors_are_constants() -> None:
    query, key, queue = (x.requires_grad_() for x in batch())
    factors = [torch.tensor(x, requires_grad=True) for x in (1.3, 0.4)]
    value = feature_transform(query, key, queue, positive=factors[0], negative=factors[1])
    gradients = torch.autograd.grad(value, [query, key, queue, *factors], allow_unused=True)
    assert [g is None for g in gradients] == [False, True, True, True, True]


@pytest.mark.parametrize("k", [3, 500], ids=["few", "many"])  # below and above d: without and with a QR
def test_a_small_spread_keeps_its_digits(k: int) -> None:
    """Candidates a hair apart: the mean of squares minus the squared mean would leave no digit."""
    query = torch.randn(7, 16)
    candidates = torch.nn.functional.normalize(torch.randn(1, 16) + 1e-3 * torch.randn(k, 16), dim=1)
    wide = torch.nn.functional.normalize(query.double(), dim=1) @ candidates.double().T
    mean, variance, rest = score_statistics(query, candidates)
    assert rest is None
    torch.testing.assert_close(mean.double(), wide.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(variance.double(), wide.var(1), rtol=5e-3, atol=0)


def test_statistics_of_one_candidate() -> None:
    mean, variance, exponential = score_statistics(torch.eye(3), torch.eye(3)[:1], temperature=0.5)
    assert mean.tolist() == [1, 0, 0]
    assert variance.isnan().all()
    torch.testing.assert_close(exponential, (mean / 0.5).exp())


def test_statistics_have_no_gradient_and_take_a_tensor_as_temperature() -> None:
    query, temperature = torch.randn(4, 3, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    found = score_statistics(query, torch.randn(5, 3), temperature=temperature)
    assert not any(x.requires_grad for x in found)
    with pytest.raises(ValueError, match="temperature must be positive"):
        score_statistics(query, query, temperature=0.0)
