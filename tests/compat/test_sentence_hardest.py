# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' losses of the hardest pairs: what is around their values, which are among the parity cases."""

from __future__ import annotations

import importlib
import inspect
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from overrides import attributes, methods, overridden, vary
from parity import Largest, peer
from sentence_cases import Encoder, columns
from torch import Tensor

from pycl.compat import FallbackWarning, _peer, explain

MODULE = "sentence_transformers.sentence_transformer.losses"
TRIPLETS = ["BatchHardTripletLoss", "BatchHardSoftMarginTripletLoss"]
MARGIN = "MegaBatchMarginLoss"
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3])


@pytest.fixture
def library() -> ModuleType:
    return peer(MODULE)


@pytest.fixture
def ours(library: ModuleType) -> ModuleType:
    return importlib.import_module("pycl.compat.sentence_transformers")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_peer, "_warned", set())
    monkeypatch.delenv("PYCL_STRICT", raising=False)


def build(kind: type, mini: bool = True) -> Any:
    if kind.__name__ == MARGIN:
        return kind(Encoder(), use_mini_batched_version=mini, mini_batch_size=4)
    return kind(Encoder())


def called(loss: Any, dtype: torch.dtype = torch.float64, labels: Tensor = LABELS) -> list[Tensor]:
    """The loss as a trainer calls it, and the gradients of what the model embeds."""
    one = isinstance(loss, peer(MODULE).MegaBatchMarginLoss)
    x = [z.requires_grad_() for z in columns(len(labels), 5, 1 + one, dtype)]
    value = loss([{"embedding": z, "input_ids": z} for z in x], None if one else labels)
    value.sum().backward()
    return [value.detach(), *(z.grad for z in x)]


def assert_same(mine: list[Tensor], its: list[Tensor]) -> None:
    for a, b in zip(mine, its, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mini", [True, False])
@pytest.mark.parametrize("name", [*TRIPLETS, MARGIN])
def test_called_by_a_trainer(
    name: str, mini: bool, ours: ModuleType, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCL_STRICT", "1")
    assert_same(*(called(build(getattr(lib, name), mini)) for lib in (ours, library)))


@pytest.mark.parametrize("name", [*TRIPLETS, MARGIN])
def test_is_the_library_s_class(name: str, ours: ModuleType, library: ModuleType) -> None:
    mine, theirs = getattr(ours, name), getattr(library, name)
    assert issubclass(mine, theirs)
    assert mine.__module__.startswith("pycl.")
    assert inspect.signature(mine.__init__) == inspect.signature(theirs.__init__)
    for method in methods(theirs, "sentence_transformers"):
        if callable(getattr(theirs, method)):
            found = [inspect.signature(getattr(cls, method)).parameters.values() for cls in (mine, theirs)]
            assert [(p.name, p.kind, p.default) for p in found[0]] == [(p.name, p.kind, p.default) for p in found[1]]
    a, b = build(mine), build(theirs)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert vars(a).keys() == vars(b).keys()
    said = a.get_config_dict()
    assert said.pop("computed_by") == "pycl.compat.sentence_transformers"
    assert said == b.get_config_dict()
    assert a.citation == b.citation


CHANGES = ("attribute", "method", "subclass")


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [*TRIPLETS, MARGIN])
def test_what_a_user_changes_counts(name: str, change: str, ours: ModuleType, library: ModuleType) -> None:
    """Another value of each attribute, another method in an object or a subclass: the library's numbers."""
    theirs = getattr(library, name)
    names = attributes(build(theirs)) if change == "attribute" else methods(theirs, "sentence_transformers")
    if change == "method":
        names = [n for n in names if not isinstance(inspect.getattr_static(theirs, n), property)]
    assert names
    for changed in names:
        found = []
        for lib in (ours, library):
            kind = getattr(lib, name)
            loss = build(overridden(kind, changed) if change == "subclass" else kind, mini=changed != "forward")
            if change != "subclass":
                vary(loss, changed)
            found.append(called(loss))
        assert_same(*found)


def manhattan(x: Tensor) -> Tensor:
    return torch.cdist(x, x, p=1)


@pytest.mark.parametrize("name", TRIPLETS)
def test_another_distance_runs_the_library_s_code(
    name: str, ours: ModuleType, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = (getattr(lib, name)(Encoder(), manhattan) for lib in (ours, library))
    with pytest.warns(FallbackWarning, match=f"{name} runs the library's own code: distance_metric=manhattan"):
        found = called(mine)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        assert_same(called(mine), found)  # says so once
    assert_same(found, called(theirs))
    assert "distance_metric=manhattan" in explain(mine)
    assert "fused" in explain(build(getattr(ours, name)))
    monkeypatch.setenv("PYCL_STRICT", "1")
    with pytest.raises(RuntimeError, match="distance_metric=manhattan"):
        called(mine)


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize("name", TRIPLETS)
def test_labels_of_another_number_are_the_library_s_error(name: str, ours: ModuleType) -> None:
    with pytest.raises(ValueError, match=f"{name} expects 9 labels .* got 8 labels with shape"):
        build(getattr(ours, name)).compute_loss_from_embeddings([columns(9, 5, 1)[0]], LABELS[:8])


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
def test_columns_of_another_number_are_the_library_s_error(ours: ModuleType, library: ModuleType) -> None:
    x = columns(6, 4, 3)
    with pytest.raises(ValueError, match="exactly 2 input columns"):
        build(ours.MegaBatchMarginLoss)([{"embedding": z, "input_ids": z} for z in x], None)
    more = [[columns(4, 3, 1)[0]], [columns(7, 3, 2)[1]]]  # the last positives are negatives alone
    assert_same(*([build(lib.MegaBatchMarginLoss).calculate_loss(more)] for lib in (ours, library)))


def anchors_alone(lib: ModuleType, name: str) -> list[Tensor]:
    loss = getattr(lib, name)(Encoder(), lib.BatchHardTripletLossDistanceFunction.cosine_distance)
    return called(loss, labels=torch.zeros(9, dtype=torch.int64))


@pytest.mark.parametrize("name", TRIPLETS)
def test_cosines_without_negatives(name: str, ours: ModuleType, library: ModuleType) -> None:
    (value, gradient), (expected, noise) = (anchors_alone(lib, name) for lib in (ours, library))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert noise.abs().max() < 1e-15
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("name", TRIPLETS)
def test_equal_and_zero_embeddings(name: str, metric: str, ours: ModuleType, library: ModuleType) -> None:
    """Of one class and of two; a zero, whose cosine distance to itself is 1, with negatives and without."""
    x = columns(8, 4, 1)[0]
    x[1], x[5], x[3], x[6] = x[0], x[0], 0, 0
    for labels in ([0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 0, 1, 0, 0], [4] * 8):
        found = []
        for lib in (ours, library):
            loss = getattr(lib, name)(
                Encoder(), getattr(lib.BatchHardTripletLossDistanceFunction, f"{metric}_distance")
            )
            z = x.clone().requires_grad_()
            value = loss.compute_loss_from_embeddings([z], torch.tensor(labels))
            value.backward()
            found.append(value.detach())
            assert z.grad.isfinite().all()
        torch.testing.assert_close(*found, rtol=1e-7, atol=0)  # the library's distance of equals is a rounding's root


DTYPES = [
    (dtype, half)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for half in (None, torch.bfloat16)
    if (dtype, half) != (torch.float16, torch.bfloat16)
]


@pytest.mark.parametrize(("dtype", "half"), DTYPES)
@pytest.mark.parametrize("name", [*TRIPLETS, MARGIN])
def test_result_has_the_library_s_dtype(
    name: str, dtype: torch.dtype, half: torch.dtype | None, ours: ModuleType, library: ModuleType
) -> None:
    metrics = ("euclidean_distance", "cosine_distance") if name in TRIPLETS else (None,)
    for metric in metrics:
        with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
            losses = [build(getattr(lib, name)) for lib in (ours, library)]
            for loss in losses:
                if metric:
                    loss.distance_metric = getattr(library.BatchHardTripletLossDistanceFunction, metric)
            mine, its = (called(loss, dtype) for loss in losses)
        assert [z.dtype for z in mine] == [z.dtype for z in its]
        torch.testing.assert_close(mine[0], its[0], rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", [*TRIPLETS, MARGIN])
def test_no_matrix_is_made(name: str, ours: ModuleType, library: ModuleType) -> None:
    n, d = 1024, 4
    labels = torch.arange(n) % 128
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    sizes = []
    for lib in (ours, library):
        loss, z = build(getattr(lib, name), mini=False), x.clone().requires_grad_()
        with Largest() as largest:
            given = [[z], [z.roll(1, 0)]]
            value = loss.calculate_loss(given) if name == MARGIN else loss.compute_loss_from_embeddings([z], labels)
            value.backward()
        sizes.append(largest.numel)
    assert sizes[0] <= 4 * n * d < sizes[1]
    assert sizes[1] >= n * n


def evaluated(loss: Any, x: list[Tensor]) -> Tensor:
    """The loss of two columns, or of the first and its labels."""
    if isinstance(loss, peer(MODULE).MegaBatchMarginLoss):
        return loss.calculate_loss([[z] for z in x])
    return loss.compute_loss_from_embeddings(x[:1], LABELS)


@pytest.mark.parametrize("size", [1e-18, 1e15])
@pytest.mark.parametrize("name", [*TRIPLETS, MARGIN])
def test_extremes_are_finite(name: str, size: float, ours: ModuleType) -> None:
    x = [(size * z).requires_grad_() for z in columns(9, 5, 2, torch.float32)]
    value = evaluated(build(getattr(ours, name)), x)
    value.backward()
    assert value.isfinite()
    assert x[0].grad.isfinite().all()


@pytest.mark.parametrize("name", [*TRIPLETS, MARGIN])
def test_not_a_number_is_seen(name: str, ours: ModuleType, library: ModuleType) -> None:
    for lib in (ours, library):
        x = [z.clone() for z in columns(9, 5, 2)]
        x[0][3, 1] = torch.nan
        assert evaluated(build(getattr(lib, name)), x).isnan()


@pytest.mark.parametrize("name", [*TRIPLETS, MARGIN])
def test_compiled(name: str, ours: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCL_STRICT", "1")
    torch._dynamo.reset()
    loss = build(getattr(ours, name))
    graphs = []

    def look(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def run(x: Tensor, y: Tensor) -> Tensor:
        if name == MARGIN:
            return loss.calculate_loss([[x], [x.flip(1)]])
        return loss.compute_loss_from_embeddings([x], y)

    compiled = torch.compile(run, backend=look, fullgraph=True)
    for n in (8, 12, 5):
        x, y = columns(n, 4, 1)[0].requires_grad_(), torch.arange(n) % 3
        found, expected = (torch.autograd.grad(call(x, y), x)[0] for call in (compiled, run))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert len(graphs) <= 3
    torch._dynamo.reset()
