# SPDX-License-Identifier: Apache-2.0
"""gCooL's community loss and DeCA: edges, identities, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from pycl.objectives import deca, gcool, gcool_community
from pycl.testing.objectives.gcool import gcool_community as formula

N, D, T = 11, 5, 0.3


@pytest.fixture(name="views")
def _views() -> list[Tensor]:
    h1 = torch.randn(N, D, dtype=torch.float64)
    return [h1.requires_grad_(), (h1 + 0.5 * torch.randn_like(h1)).detach().requires_grad_()]


def centers(k: int) -> Tensor:
    return torch.randn(k, D, dtype=torch.float64)


@pytest.mark.parametrize("similarity", ["cos", "rbf"])
def test_both_directions_count(views: list[Tensor], similarity: str) -> None:
    c = centers(4)
    options = {"similarity": similarity, "gamma": 0.7}
    value, swapped = gcool_community(*views, c, **options), gcool_community(*views[::-1], c, **options)
    torch.testing.assert_close(value, swapped, rtol=1e-12, atol=0)
    assert all(x.any() for x in torch.autograd.grad(value, views))


@pytest.mark.parametrize("second", [1.0, -1.0], ids=["tie", "opposite"])
def test_an_empty_community_has_a_zero_centre_and_the_first_of_equals_is_taken(second: float) -> None:
    direction = torch.eye(D, dtype=torch.float64)[0]
    views = [direction + 0.1 * torch.randn(N, D, dtype=torch.float64) for _ in range(2)]
    u, v = (normalize(x, dim=1) for x in views)
    wanted = (softplus(-u @ v.mean(0) / T) + softplus(-v @ u.mean(0) / T)).mean() / 2
    found = gcool_community(*views, torch.stack([direction, second * direction]), temperature=T)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_the_length_of_centres_does_not_matter(views: list[Tensor]) -> None:
    c = centers(4)
    longer = c * (torch.rand(4, 1, dtype=torch.float64) * 50 + 1)
    torch.testing.assert_close(gcool_community(*views, longer), gcool_community(*views, c), rtol=1e-12, atol=0)


def test_gradients_of_an_rbf_temperature_and_of_gamma(views: list[Tensor]) -> None:
    c, leaves = centers(4), [torch.tensor(x).double().requires_grad_() for x in (0.4, 0.6)]
    found, wanted = (
        torch.autograd.grad(f(*views, c, temperature=leaves[0], similarity="rbf", gamma=leaves[1]), [*views, *leaves])
        for f in (gcool_community, formula)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_weights_that_vanish_leave_the_positive_alone(views: list[Tensor]) -> None:
    value = gcool_community(*views, centers(4), similarity="rbf", gamma=1e9)
    assert value.abs() < 1e-14
    assert all(x.abs().max() < 1e-14 for x in torch.autograd.grad(value, views))


@pytest.mark.parametrize("similarity", ["cos", "rbf"])
def test_communities_are_found_in_strips(views: list[Tensor], similarity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = centers(4)
    whole = gcool_community(*views, c, similarity=similarity)
    monkeypatch.setattr(gcool, "ELEMENTS", 12)  # three nodes
    torch.testing.assert_close(gcool_community(*views, c, similarity=similarity), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "dot"}, "similarity must be one of 'cos', 'rbf', got 'dot'"),
        ({"gamma": -0.1}, "gamma must be at least 0 and finite"),
        ({"gamma": torch.tensor(float("inf"))}, "gamma must be at least 0 and finite"),
        ({"centers": torch.randn(3, D + 1)}, "centers must have 5 features"),
        ({"h2": torch.randn(N + 1, D)}, "h1 and h2 must have one and the same shape"),
    ],
)
def test_community_arguments_that_do_not_fit_are_refused(
    views: list[Tensor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gcool_community(**{"h1": views[0], "h2": views[1], "centers": centers(3), **options})


@pytest.mark.parametrize("similarity", ["cos", "rbf"])
def test_autocast_changes_nothing_of_communities(similarity: str) -> None:
    views, c = [torch.randn(64, D) for _ in range(2)], torch.randn(4, D)
    options = {"similarity": similarity, "gamma": 0.7}
    with torch.autocast("cpu", torch.bfloat16):
        value, density = gcool_community(*views, c, **options), deca(views[0], torch.arange(64).view(2, 32))
    assert torch.equal(value, gcool_community(*views, c, **options))
    assert torch.equal(density, deca(views[0], torch.arange(64).view(2, 32)))


@pytest.mark.parametrize("resolution", [0.0, 1.0, 3.5])
def test_deca_of_two_pairs_that_are_apart(resolution: float) -> None:
    pairs = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    value = deca(torch.eye(2).repeat_interleave(2, 0), pairs, resolution=resolution)
    torch.testing.assert_close(value, torch.tensor(-0.5))  # tr F = sum F = 4, tr R'R = 4


def test_deca_counts_an_edge_once_and_needs_none() -> None:
    soft, edges = torch.randn(N, 3, dtype=torch.float64).softmax(1).requires_grad_(), torch.randint(N, (2, 20))
    once, twice = deca(soft, edges), deca(soft, torch.cat([edges, edges.flip(1)], 1).int())
    assert torch.equal(once, twice)
    torch.testing.assert_close(deca(soft, edges[:, :0]), soft.square().sum() / (2 * N), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(deca(soft, edges[:, :0]), soft)
    torch.testing.assert_close(gradient, soft.detach() / N, rtol=1e-14, atol=0)


def test_deca_of_one_node_is_its_second_term() -> None:
    soft = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(deca(soft, torch.tensor([[0], [0]])).item(), (0.25**2 + 0.75**2) / 2)


def test_deca_of_a_half_type_is_summed_in_float32() -> None:
    value = deca(torch.ones(400, 400, dtype=torch.float16), torch.randint(400, (2, 3000)))
    assert value.dtype == torch.float32
    assert value.isfinite()


@pytest.mark.parametrize(
    ("edges", "error", "message"),
    [
        (torch.tensor([[0], [N]]), ValueError, "edge_index must be at least 0 and less than 11"),
        (torch.tensor([[-1], [0]]), ValueError, "edge_index must be at least 0"),
        (torch.zeros(4, 3).long(), ValueError, r"edge_index must have shape \[2, E\], got \(4, 3\)"),
        (torch.zeros(2, 3), TypeError, "edge_index must be an integer tensor, got torch.float32"),
    ],
)
def test_edges_that_do_not_fit_are_refused(edges: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        deca(torch.rand(N, 3), edges)
