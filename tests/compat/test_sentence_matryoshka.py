# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' ``MatryoshkaLoss`` around the drop-ins: one fused loss for each of the dimensions."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from parity import peer
from sentence_cases import ALL, Encoder, Guide, columns, guided_columns
from torch import Tensor

D = 8
DIMS, WEIGHTS = [2, D, 5], [0.5, 1.0, 2.0]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ranking": ("MultipleNegativesRankingLoss", {"scale": 5.0}),
    "ranking, all directions": ("MultipleNegativesRankingLoss", {"scale": 5.0, "directions": ALL}),
    "cached ranking": ("CachedMultipleNegativesRankingLoss", {"scale": 5.0, "mini_batch_size": 3}),
    "gist": ("GISTEmbedLoss", {"temperature": 0.2}),
    "cached gist": ("CachedGISTEmbedLoss", {"temperature": 0.2, "mini_batch_size": 3}),
}


class Sized(Encoder):
    def get_embedding_dimension(self) -> int:
        return D


def result(case: str, module: Any, library: Any) -> list[Tensor]:
    """The loss of a batch of triplets, and its gradients at their embeddings."""
    name, options = CASES[case]
    model = Sized()
    guided = "GIST" in name
    x = guided_columns(7, D, 3) if guided else columns(7, D, 3)
    wanted = [z.clone().requires_grad_() for z in x[:3]]
    features = [{"embedding": a, "guide": b} for a, b in zip(wanted, x[-3:], strict=True)]
    inner = getattr(module, name)(model, *[Guide()] * guided, **options)
    loss = library.MatryoshkaLoss(model, loss=inner, matryoshka_dims=DIMS, matryoshka_weights=WEIGHTS)(features, None)
    loss.backward()
    return [loss.detach(), *(z.grad for z in wanted)]


@pytest.mark.parametrize("case", CASES)
def test_every_dimension_is_fused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = peer("sentence_transformers.sentence_transformer.losses")
    ours = importlib.import_module("pycl.compat.sentence_transformers")
    monkeypatch.setenv("PYCL_STRICT", "1")  # the library's own code is an error
    guided = "gist" in case
    part = importlib.import_module(f"{ours.__name__}.{'guided' if guided else 'ranking'}")
    fused, widths = part._compared, []

    def watched(loss: Any, embeddings: list[Tensor], *args: Any, **options: Any) -> Tensor:
        widths.append(embeddings[0].shape[1])
        return fused(loss, embeddings, *args, **options)

    monkeypatch.setattr(part, "_compared", watched)
    found = result(case, ours, library)
    assert widths == sorted(DIMS, reverse=True)
    for mine, theirs in zip(found, result(case, library, library), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
