# SPDX-License-Identifier: Apache-2.0
"""MEOW, AdaMEOW and ProtoNCE: edges, identities, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.functional import info_nce
from pycl.objectives import PairWeight, ada_meow, meow, proto_nce

N, D = 9, 6


@pytest.fixture(name="views")
def _views() -> list[Tensor]:
    return [torch.randn(N, D, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def cosines(views: list[Tensor]) -> Tensor:
    u, k = (torch.nn.functional.normalize(x, dim=1) for x in views)
    return u @ k.T


def test_a_node_clustered_with_everyone_has_its_own_key_alone(views: list[Tensor]) -> None:
    value, wanted = meow(*views, torch.zeros(2, N).int(), temperature=0.4), -cosines(views).diagonal().mean() / 0.4
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, views), torch.autograd.grad(wanted, views))


def test_without_a_shared_cluster_all_others_count_alike(views: list[Tensor]) -> None:
    s = cosines(views) / 0.4
    others = s.masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf).logsumexp(1)
    apart = torch.arange(N).expand(3, N)
    torch.testing.assert_close(
        meow(*views, apart, temperature=0.4), (others + math.log(3) - s.diagonal()).mean(), rtol=1e-12, atol=1e-12
    )


def test_the_names_of_clusters_do_not_matter(views: list[Tensor]) -> None:
    clusters = torch.randint(4, (2, N))
    torch.testing.assert_close(meow(*views, clusters), meow(*views, -7 * clusters - 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("clusters", "error", "message"),
    [
        (torch.zeros(N).long(), ValueError, r"clusters must have shape \[T, 9\]"),
        (torch.zeros(0, N).long(), ValueError, "T >= 1"),
        (torch.zeros(2, N + 1).long(), ValueError, r"clusters must have shape \[T, N\], got \(2, 10\)"),
        (torch.zeros(2, N), TypeError, "clusters must be an integer tensor, got torch.float32"),
        ([[0] * N], ValueError, "clusters must have shape"),
    ],
)
def test_clusters_that_do_not_fit_are_refused(
    views: list[Tensor], clusters: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        meow(*views, clusters)


def test_a_network_without_an_opinion_is_info_nce(views: list[Tensor]) -> None:
    weight = PairWeight(D)
    torch.nn.init.zeros_(weight.w2)
    torch.nn.init.constant_(weight.b2, 1.5)
    wanted = info_nce(*views, temperature=0.9) + torch.tensor(1.5).double().sigmoid().log()
    torch.testing.assert_close(ada_meow(*views, weight), wanted, rtol=1e-12, atol=1e-12)


def test_the_network_has_its_parameters_in_order_and_weighs_pairs(views: list[Tensor]) -> None:
    weight = PairWeight(D, hidden=5).double()
    assert [tuple(p.shape) for p in weight.parameters()] == [(5, D), (5,), (5,), ()]
    assert all(0 < p.abs().max() <= 1 / math.sqrt(D if k < 2 else 5) for k, p in enumerate(weight.parameters()))
    u, k = (torch.nn.functional.normalize(x, dim=1) for x in views)
    weights = weight(u[:, None], k)
    assert weights.shape == (N, N)
    torch.testing.assert_close(weights[3, 4], weight(u[3], k[4]))
    s = cosines(views) / 0.9
    wanted = ((weights * s.exp()).sum(1).log() - s.diagonal()).mean()
    torch.testing.assert_close(ada_meow(*views, weight), wanted, rtol=1e-12, atol=1e-12)


def test_autocast_changes_nothing_of_the_network(views: list[Tensor]) -> None:
    weight, narrow = PairWeight(D), [x.detach().float() for x in views]
    with torch.autocast("cpu", torch.bfloat16):
        value = ada_meow(*narrow, weight)
    assert torch.equal(value, ada_meow(*narrow, weight))


def test_a_network_that_does_not_fit_is_refused(views: list[Tensor]) -> None:
    with pytest.raises(TypeError, match="weight must be a PairWeight, got Linear"):
        ada_meow(*views, torch.nn.Linear(D, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight must be for 6 features as anchor has, got 7"):
        ada_meow(*views, PairWeight(D + 1))
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        PairWeight(D, hidden=0)


def prototypes(*sizes: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return (
        [torch.randn(k, D, dtype=torch.float64) for k in sizes],
        [torch.randint(k, (N,)) for k in sizes],
        [torch.rand(k, dtype=torch.float64) + 0.5 for k in sizes],
    )


def test_one_centroid_leaves_the_logarithm_of_the_number() -> None:
    value = proto_nce(torch.randn(N, D, dtype=torch.float64), *prototypes(1))
    torch.testing.assert_close(value.item(), math.log(N), rtol=1e-12, atol=0)


def test_clusterings_are_averaged_and_centroids_are_taken_as_given() -> None:
    anchor = torch.randn(N, D, dtype=torch.float64)
    rows, own, phi = prototypes(3, 5)
    both = proto_nce(anchor, rows, own, phi)
    alone = [proto_nce(anchor, rows[t : t + 1], own[t : t + 1], phi[t : t + 1]) for t in range(2)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2, rtol=1e-12, atol=0)
    longer = proto_nce(anchor, [2 * c for c in rows], own, [2 * p for p in phi])
    torch.testing.assert_close(longer, both, rtol=1e-12, atol=0)
    assert (proto_nce(anchor, [2 * c for c in rows], own, phi) - both).abs() > 0.01


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c, a, p: ([], [], []), ValueError, "lists of one length T >= 1"),
        (lambda c, a, p: (c, a[:1], p), ValueError, "lists of one length"),
        (lambda c, a, p: (torch.stack([c[0]] * 2), a, p), ValueError, "must be lists"),
        (lambda c, a, p: (c, [a[0], a[1] + 5], p), ValueError, r"assignments\[1\] must be at least 0 and less than 5"),
        (lambda c, a, p: (c, [a[0] - 3, a[1]], p), ValueError, r"assignments\[0\] must be at least 0"),
        (lambda c, a, p: (c, [a[0][1:], a[1]], p), ValueError, r"assignments\[0\] must have shape \[9\]"),
        (lambda c, a, p: (c, [a[0].float(), a[1]], p), TypeError, r"assignments\[0\] must be an integer tensor"),
        (lambda c, a, p: (c, a, [p[0], 0 * p[1]]), ValueError, r"concentrations\[1\] must be positive"),
        (lambda c, a, p: (c, a, [p[0], p[1] / 0]), ValueError, r"concentrations\[1\] must be positive and finite"),
        (lambda c, a, p: (c, a, [p[0], p[0]]), ValueError, r"concentrations\[1\] must have shape \[5\]"),
        (lambda c, a, p: (c, a, [p[0].long(), p[1]]), TypeError, r"concentrations\[0\] must be a floating-point"),
        (lambda c, a, p: ([c[0][:, 1:], c[1]], a, p), ValueError, r"centroids\[0\] must have 6 features"),
    ],
)
def test_prototypes_that_do_not_fit_are_refused(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        proto_nce(torch.randn(N, D, dtype=torch.float64), *change(*prototypes(3, 5)))
