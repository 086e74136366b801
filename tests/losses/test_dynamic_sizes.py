# SPDX-License-Identifier: Apache-2.0
"""Batches of changing size in one compiled graph, and graphs exported for any number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import normalize

import pycl
import pycl.functional as F
from pycl.testing.table import LOSSES

Loss = Callable[[Tensor], Tensor]
SIZES = (16, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20)  # more than are compiled before PyTorch gives up

CALLS: dict[str, Loss] = {
    **{name: row.of_views for name, row in LOSSES.items() if row.traced and not row.options},
    "swav": lambda z: F.swav(normalize(z, dim=-1), torch.eye(5, 8)),
    "sinkhorn": lambda z: F.sinkhorn(z[0]),
    "sinkhorn_potentials": lambda z: F.sinkhorn_potentials(normalize(z[0], dim=-1), torch.eye(5, 8))[1],
    "similarity": lambda z: F.similarity(z[0], z[1]),
    "similarity_topk": lambda z: F.similarity_topk(z[0], z[1], 3)[0],
}


@pytest.fixture(params=CALLS)
def loss(request: pytest.FixtureRequest) -> Iterator[Loss]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield CALLS[request.param]
    torch._dynamo.reset()


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_two_graphs_serve_every_size(loss: Loss) -> None:
    graphs = CompileCounter()
    compiled = torch.compile(loss, backend=graphs, fullgraph=True)
    for n in SIZES:
        z = torch.randn(2, n, 8)
        near(compiled(z), loss(z))
    assert graphs.frame_count <= 2


def test_one_compiled_gradient_for_any_size(loss: Loss) -> None:
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in SIZES[:3]:
        z = torch.randn(2, n, 8, requires_grad=True)
        value = loss(z).sum()
        if value.requires_grad:
            near(torch.autograd.grad(compiled(z).sum(), z)[0], torch.autograd.grad(value, z)[0])


class Exported(nn.Module):
    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z: Tensor) -> Tensor:
        return self.loss(z)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_graph_takes_any_size(loss: Loss, strict: bool, request: pytest.FixtureRequest) -> None:
    if "pairwise_nt_xent" in request.node.name and not strict:
        pytest.skip("torch.export adds a guard on the strides of a view of all points")
    sizes = {"z": {1: torch.export.Dim("n", min=4, max=4096)}}
    graph = torch.export.export(Exported(loss), (torch.randn(2, 16, 8),), dynamic_shapes=sizes, strict=strict)
    z = torch.randn(2, 23, 8)
    near(graph.module()(z), loss(z))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_queue_needs_no_graph_for_each_step(compiler: str) -> None:
    """From empty to full and beyond, with a last batch that is smaller."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    compiled_loss, loss = (pycl.SwAVLoss(queue_size=48, dim=8) for _ in range(2))
    graphs = CompileCounter() if compiler == "eager" else compiler
    compiled = torch.compile(compiled_loss, backend=graphs, fullgraph=True)
    prototypes = torch.eye(5, 8)
    for step in range(12):
        z = normalize(torch.randn(2, 16 if step != 8 else 7, 8), dim=-1)
        near(compiled(z, prototypes), loss(z, prototypes))
        assert torch.equal(compiled_loss.queue, loss.queue)
        assert torch.equal(compiled_loss.queue_pointer, loss.queue_pointer)
    if isinstance(graphs, CompileCounter):
        assert graphs.frame_count <= 2
