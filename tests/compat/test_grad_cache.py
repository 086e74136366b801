# SPDX-License-Identifier: Apache-2.0
"""The losses of pycl.compat.grad_cache against GradCache's: recorded numbers, the live library, its errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from grad_cache_peer import declare_grad_cache, grad_cache
from parity import Case, Largest, assert_same, embeddings, golden, measure, peer
from torch import Tensor
from torch.nn.functional import cross_entropy

declare_grad_cache()

from pycl.compat import FallbackWarning  # noqa: E402
from pycl.compat.grad_cache import loss  # noqa: E402

PEER, MODULE = "gradcache", "gradcache.loss"
HALF = 4e-2


def pair(n: int, per_query: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return embeddings(n, 5, 1, dtype), embeddings(n * per_query, 5, 2, dtype)


def simple(hard: int = 0, **options: Any) -> Callable[..., Tensor]:
    return lambda module, *x: module.SimpleContrastiveLoss(hard)(*x, **options)


TARGET = torch.tensor([2, 0, 2, 8, -100, 1, 5])
CASES: dict[str, Case] = {
    "in order": Case(simple(), pair(7)),
    "hard negatives": Case(simple(2), pair(5, 3)),
    "targets": Case(simple(target=TARGET), (embeddings(7, 5, 1), embeddings(9, 5, 2))),
    "targets alone": Case(simple(target=TARGET, reduction="none"), (embeddings(7, 5, 1), embeddings(9, 5, 2))),
    "targets summed": Case(simple(target=TARGET, reduction="sum"), (embeddings(7, 5, 1), embeddings(9, 5, 2))),
    "sum": Case(simple(1, reduction="sum"), pair(5, 2)),
    "none": Case(simple(reduction="none"), pair(5)),
    "one": Case(simple(reduction="none"), pair(1)),
    "float32": Case(simple(1), pair(12, 2, torch.float32)),
    "bfloat16": Case(simple(), pair(9, 1, torch.bfloat16), HALF),
    "closure": Case(
        lambda m, x, y: m.ContrastiveLossWithQueryClosure(1)(y, query_closure=lambda: 2 * x, reduction="sum"),
        pair(4, 2),
    ),
    "closure of two": Case(lambda m, *x: m.ContrastiveLossWithQueryClosure()(*x), pair(4)),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert_same(measure(CASES[name], loss), golden(PEER)[name], CASES[name].tolerance)


@pytest.mark.parametrize("name", CASES)
def test_live(name: str) -> None:
    assert_same(measure(CASES[name], loss), measure(CASES[name], peer(MODULE)), CASES[name].tolerance)


@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtype_of_the_result(dtype: torch.dtype, half: torch.dtype | None) -> None:
    x, y = pair(6, 1, dtype)
    with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        dense = cross_entropy(x @ y.t(), torch.arange(6))
        found = [loss.SimpleContrastiveLoss()(x, y), loss.SimpleContrastiveLoss()(x, y, torch.arange(6))]
    assert {value.dtype for value in found} == {dense.dtype}


def test_targets_that_are_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycl.compat._peer._warned", set())
    library, (x, y) = peer(MODULE), pair(4)
    target = embeddings(4, 4, 3).softmax(1)
    with pytest.warns(FallbackWarning, match="probabilities"):
        found = loss.SimpleContrastiveLoss()(x, y, target)
    torch.testing.assert_close(found, library.SimpleContrastiveLoss()(x, y, target))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x, y: loss.SimpleContrastiveLoss(1)(x, y), AssertionError),
        (lambda x, y: loss.SimpleContrastiveLoss()(x, y, torch.tensor([0, 1, 2, 4])), IndexError),
        (lambda x, y: loss.SimpleContrastiveLoss()(x, y, torch.tensor([0, 1])), ValueError),
        (lambda x, y: loss.SimpleContrastiveLoss()(x, y, reduction="max"), ValueError),
        (lambda x, y: loss.SimpleContrastiveLoss()(x, y.float()), RuntimeError),
        (lambda x, y: loss.DistributedContrastiveLoss(), AssertionError),
        (lambda x, y: loss.ContrastiveLossWithQueryClosure()(x), AssertionError),
        (lambda x, y: loss.ContrastiveLossWithQueryClosure()(x, y, y), ValueError),
    ],
)
def test_wrong_calls_of_losses(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call(*pair(4))


def test_no_matrix_is_made() -> None:
    n = 512
    x, y = (z.requires_grad_() for z in (embeddings(n, 5, 1, torch.float32), embeddings(2 * n, 5, 2, torch.float32)))
    with Largest() as found:
        loss.SimpleContrastiveLoss(1)(x, y).backward()
        loss.SimpleContrastiveLoss()(x, y, torch.arange(n)).backward()
    assert found.numel < n * n / 8


def test_signatures_and_attributes() -> None:
    library = grad_cache("loss")
    for name in loss.__all__:
        mine, theirs = (getattr(m, name) for m in (loss, library))
        assert issubclass(mine, peer(MODULE).SimpleContrastiveLoss) or issubclass(mine, library.SimpleContrastiveLoss)
        assert mine.__name__ == theirs.__name__
        for method in ("__init__", "__call__"):
            found = [inspect.signature(getattr(c, method)).parameters.values() for c in (mine, theirs)]
            assert [(p.name, p.default, p.kind) for p in found[0]] == [(p.name, p.default, p.kind) for p in found[1]]
    assert vars(loss.SimpleContrastiveLoss(2)) == vars(library.SimpleContrastiveLoss(2))
