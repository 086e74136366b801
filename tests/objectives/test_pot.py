# SPDX-License-Identifier: Apache-2.0
"""The bound of POT: sound, exact where nothing is perturbed, and its edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pycl.objectives import grace, node_compactness
from pycl.testing.objectives.pot import graph

LAST_RELU = pytest.mark.parametrize("last_relu", [False, True])


def product(of_edges: Tensor, given: dict[str, Any], last_relu: bool) -> Tensor:
    """<h1_i, w_i> of the network on a graph with these weights of its edges."""
    n = len(given["x"])
    a = torch.zeros(n, n, dtype=torch.float64).index_put(tuple(given["edge_index"]), of_edges, accumulate=True)
    h1 = a @ (a @ given["x"] @ given["weight1"] + given["bias1"]).relu() @ given["weight2"] + given["bias2"]
    n2 = torch.nn.functional.normalize(given["h2"], dim=1)
    others = torch.stack([torch.cat([n2[:i], n2[i + 1 :]]).mean(0) for i in range(n)])
    return ((h1.relu() if last_relu else h1) * (n2 - others)).sum(1)


@LAST_RELU
def test_no_augmentation_is_below_the_bound(last_relu: bool) -> None:
    given = graph(12, 5)
    bound, _ = node_compactness(**given, last_relu=last_relu)
    lower, upper = given["lower"], given["upper"]
    ends = [lower, upper, *((upper - lower) * torch.rand(200, len(lower)).round() + lower)]
    for of_edges in [*ends, *((upper - lower) * torch.rand(200, len(lower)) + lower)]:
        assert (product(of_edges, given, last_relu) >= bound - 1e-12).all()


@LAST_RELU
def test_it_is_the_product_where_nothing_is_perturbed(last_relu: bool) -> None:
    given = graph(12, 5)
    given["lower"] = given["upper"]
    bound, value = node_compactness(**given, last_relu=last_relu)
    expected = product(given["upper"], given, last_relu)
    torch.testing.assert_close(bound, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(value, (1 + (-expected).exp()).log().mean(), rtol=0, atol=1e-12)


@LAST_RELU
def test_wider_bounds_give_a_lower_one(last_relu: bool) -> None:
    given = graph(12, 5)
    bound, _ = node_compactness(**given, last_relu=last_relu)
    wider, _ = node_compactness(**{**given, "lower": given["lower"] / 2}, last_relu=last_relu)
    assert (wider <= bound).all()
    assert (wider < bound).any()


def test_a_graph_without_edges_leaves_the_biases() -> None:
    given = graph(4, 3)
    given |= {"edge_index": torch.empty(2, 0, dtype=torch.int64), "lower": torch.empty(0), "upper": torch.empty(0)}
    bound, _ = node_compactness(**given)
    torch.testing.assert_close(bound, product(torch.empty(0).double(), given, False))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lower": torch.full((16,), 2.0)}, ValueError, "lower must be at least 0 and at most upper"),
        ({"lower": torch.full((16,), -0.1)}, ValueError, "lower must be at least 0"),
        ({"upper": torch.ones(3)}, ValueError, r"upper must have shape \[16\], got \(3,\)"),
        ({"edge_index": torch.full((2, 16), 4)}, ValueError, "edge_index must be from 0 to 3"),
        ({"edge_index": torch.zeros(16, 2, dtype=torch.int64)}, ValueError, r"edge_index must have shape \[2, E\]"),
        ({"edge_index": torch.zeros(2, 16)}, TypeError, "edge_index must be an integer tensor, got torch.float32"),
        ({"weight1": torch.ones(5, 7)}, ValueError, r"weight1 must have shape \[6, 7\], got \(5, 7\)"),
        ({"bias2": torch.ones(2)}, ValueError, r"bias2 must have shape \[3\], got \(2,\)"),
        ({"h2": torch.ones(5, 3)}, ValueError, r"h2 must have shape \[4, 3\], got \(5, 3\)"),
        ({"bias1": torch.ones(7, dtype=torch.int64)}, TypeError, "bias1 must be a floating-point tensor"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        node_compactness(**{**graph(4, 3), **change})


def test_grace_of_one_node_is_zero() -> None:
    h = torch.randn(1, 4, requires_grad=True)
    value = grace(h, h.detach())
    assert value == 0
    assert not torch.autograd.grad(value, h)[0].any()
