# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' drop-ins under torch.compile: one graph, fused as in eager, for batches of any size."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from parity import peer
from sentence_cases import ALL, Encoder, Guide, columns, guided_columns
from torch import Tensor


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    peer("sentence_transformers")
    monkeypatch.setenv("PYCL_STRICT", "1")  # the library's own code is an error
    torch._dynamo.reset()
    yield importlib.import_module("pycl.compat.sentence_transformers")
    torch._dynamo.reset()


def ranked(name: str, **options: Any) -> Callable[[Any], Callable[..., Tensor]]:
    def build(module: Any) -> Callable[..., Tensor]:
        loss = getattr(module, name)(Encoder(), **options)
        if "Cached" in name:
            return lambda *x: loss.calculate_loss([[z] for z in x])
        return lambda *x: loss.compute_loss_from_embeddings(list(x), None)

    return build


def guided(name: str, **options: Any) -> Callable[[Any], Callable[..., Tensor]]:
    def build(module: Any) -> Callable[..., Tensor]:
        loss = getattr(module, name)(Encoder(), Guide(), **options)
        if "Cached" in name:
            return lambda *x: loss.calculate_loss(*([[z] for z in part] for part in (x[:2], x[2:])))
        return lambda *x: loss([{"embedding": a, "guide": b} for a, b in zip(x[:2], x[2:], strict=True)], None)

    return build


CASES = {
    "pairs": (ranked("MultipleNegativesRankingLoss"), columns),
    "all directions": (ranked("MultipleNegativesRankingLoss", directions=ALL), columns),
    "hard": (
        ranked("MultipleNegativesRankingLoss", hardness_mode="all_negatives", hardness_strength=2.0),
        columns,
    ),
    "cached": (ranked("CachedMultipleNegativesRankingLoss"), columns),
    "gist": (guided("GISTEmbedLoss", temperature=0.1), guided_columns),
    "cached gist": (guided("CachedGISTEmbedLoss", temperature=0.1), guided_columns),
}


@pytest.mark.parametrize("case", CASES)
def test_compiled_losses_are_fused(case: str, ours: Any) -> None:
    build, make = CASES[case]
    run = build(ours)
    graphs = []

    def look(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(run, backend=look, fullgraph=True)
    for n in (8, 12, 5):
        found, expected = ([z.clone().requires_grad_() for z in make(n, 4, 2)] for _ in range(2))
        for call, x in ((compiled, found), (run, expected)):
            call(*x).backward()
        torch.testing.assert_close(compiled(*found), run(*expected), rtol=1e-9, atol=0)
        for a, b in zip(found[:2], expected[:2], strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    assert len(graphs) <= 3
