# SPDX-License-Identifier: Apache-2.0
"""What a user sets or overrides in sentence-transformers' losses: the drop-in gives the library's numbers."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from overrides import attributes, methods, overridden, vary
from parity import peer
from sentence_cases import ALL, Encoder, Guide, columns, guided_columns
from torch import Tensor, nn

from pycl.compat import FallbackWarning, _peer, explain

MODULE = "sentence_transformers.sentence_transformer.losses"
theirs: Any = peer(MODULE) if importlib.util.find_spec("sentence_transformers") else None
pytestmark = pytest.mark.skipif(theirs is None, reason="sentence-transformers is not installed")
ours: Any = importlib.import_module("pycl.compat.sentence_transformers") if theirs else None

RANKED = {
    f"{cached}MultipleNegatives{way}RankingLoss": {"mini_batch_size": 4} if cached else {}
    for cached in ("", "Cached")
    for way in ("", "Symmetric")
}
GUIDED = {"GISTEmbedLoss": {"temperature": 0.2}, "CachedGISTEmbedLoss": {"temperature": 0.2, "mini_batch_size": 4}}
CLASSES = [*RANKED, *GUIDED] if theirs else []


def result(kind: Callable[..., Any], prepare: Callable[[Any], None] = lambda _: None) -> list[Tensor]:
    """The loss of a batch and the gradients of what the model embeds, or what the library raises."""
    name = kind.__name__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if name in GUIDED:
            loss, x = kind(Encoder(), Guide(), **GUIDED[name]), guided_columns(10, 4, 3)
        else:
            loss, x = kind(Encoder(), scale=3.0, **RANKED[name]), columns(10, 4, 3)
    prepare(loss)
    wanted = [z.clone().requires_grad_() for z in x[:3]]
    seen = x[3:] or x
    value = loss([{"embedding": a, "guide": b} for a, b in zip(wanted, seen, strict=True)], None)
    value.sum().backward()
    return [value.detach(), *(z.grad for z in wanted if z.grad is not None)]


def assert_same(mine: list[Tensor], its: list[Tensor]) -> None:
    assert len(mine) == len(its) >= 2
    for a, b in zip(mine, its, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_peer, "_warned", set())
    monkeypatch.delenv("PYCL_STRICT", raising=False)


def every_method() -> list[tuple[str, str]]:
    return [(name, m) for name in CLASSES for m in methods(getattr(theirs, name), "sentence_transformers")]


def is_property(name: str, method: str) -> bool:
    return isinstance(inspect.getattr_static(getattr(theirs, name), method), property)


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize(("name", "method"), every_method())
def test_overridden_methods(name: str, method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        mine, its = (result(overridden(getattr(lib, name), method)) for lib in (ours, theirs))
    assert_same(mine, its)


UNASKED = {"gather_across_devices", "show_progress_bar", "hardness_strength", "loss"}  # by the library, here


def every_attribute() -> list[tuple[str, str]]:
    found = []
    for name in CLASSES:
        result(getattr(theirs, name), lambda loss, name=name: found.extend((name, a) for a in attributes(loss)))
    return [(name, attribute) for name, attribute in found if attribute != "must_retokenize"]  # there is no text here


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize(("name", "attribute"), every_attribute())
def test_attributes_that_are_set(name: str, attribute: str) -> None:
    mine, its = (result(getattr(lib, name), lambda loss: vary(loss, attribute)) for lib in (ours, theirs))
    assert_same(mine, its)
    if attribute not in UNASKED:
        assert any(not torch.equal(a, b) for a, b in zip(its, result(getattr(theirs, name)), strict=True))


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize(("name", "method"), [(n, m) for n, m in every_method() if not is_property(n, m)])
def test_methods_of_one_object(name: str, method: str) -> None:
    assert_same(*(result(getattr(lib, name), lambda loss: vary(loss, method)) for lib in (ours, theirs)))


def setting(**values: Any) -> Callable[[Any], None]:
    def prepare(loss: Any) -> None:
        for name, value in values.items():
            setattr(loss, name, value)

    return prepare


def steep(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T).tanh()


HARD = {"hardness_mode": "all_negatives", "hardness_strength": 2.0}
FUSED_SETTINGS = {
    "directions": {"directions": ALL},
    "no direction": {"directions": ()},
    "documents only": {"directions": ("doc_to_doc",)},
    "each": {"directions": (ALL[0], ALL[2]), "partition_mode": "per_direction"},
    "each of unlike ones": {"directions": ALL, "partition_mode": "per_direction"},
    "an unknown mode": {"partition_mode": "alone"},
    "hardness": HARD,
    "an unknown hardness": {**HARD, "hardness_mode": "none of them"},
    "a tensor": {"scale": torch.tensor(2.0, dtype=torch.float64)},
    "a tensor of one entry": {"scale": torch.full((1, 1), 2.0, dtype=torch.float64)},
    "a negative scale": {"scale": -2.0},
}
OTHER_SETTINGS = {
    "a scale for each query": {"scale": torch.linspace(1, 2, 10, dtype=torch.float64)[:, None]},
    "similarity": {"similarity_fct": steep},
}
FUSED_GUIDED = {
    "a sum": {"cross_entropy_loss": nn.CrossEntropyLoss(reduction="sum")},
    "a tensor": {"temperature": torch.tensor(0.3, dtype=torch.float64)},
    "relative": {"margin_strategy": "relative", "margin": 0.3},
    "no contrasts": {"contrast_anchors": False, "contrast_positives": False},
}
OTHER_GUIDED = {
    "smoothing": {"cross_entropy_loss": nn.CrossEntropyLoss(label_smoothing=0.2), "margin": -9.0},
    "an ignored index": {"cross_entropy_loss": nn.CrossEntropyLoss(ignore_index=2)},
    "a subclass": {
        "cross_entropy_loss": type("Own", (nn.CrossEntropyLoss,), {"forward": lambda *x: x[1].exp().sum()})()
    },
    "learned": {"temperature": nn.Parameter(torch.tensor(0.3, dtype=torch.float64))},
    "margins": {"margin": torch.linspace(0, 0.4, 10, dtype=torch.float64)[:, None]},
}
SETTINGS = [
    (name, values, name_of_fused)
    for names, settings, fused in (
        (RANKED, FUSED_SETTINGS, True),
        (RANKED, OTHER_SETTINGS, False),
        (GUIDED, FUSED_GUIDED, True),
        (GUIDED, OTHER_GUIDED, False),
    )
    for name in names
    for name_of_fused, values in ((fused, v) for v in settings.values())
    if not (name.startswith("Cached") and any(getattr(v, "numel", lambda: 1)() > 1 for v in values.values()))
]


@pytest.mark.skipif(theirs is None, reason="sentence-transformers is not installed")
@pytest.mark.parametrize(("name", "values", "fused"), SETTINGS)
def test_settings(name: str, values: dict[str, Any], fused: bool) -> None:
    its = result(getattr(theirs, name), setting(**values))
    if fused:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            mine = result(getattr(ours, name), setting(**values))
    else:
        with pytest.warns(FallbackWarning, match="runs the library's own code"):
            mine = result(getattr(ours, name), setting(**values))
    assert_same(mine, its)


@pytest.mark.parametrize("name", CLASSES)
def test_explained(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loss = getattr(ours, name)(Encoder(), Guide()) if name in GUIDED else getattr(ours, name)(Encoder())
    lines = [line.split() for line in explain(loss).splitlines()]
    assert {line[0].rpartition(".")[2] for line in lines if line[1:] == ["1", "fused"]} >= {name}
    assert not any("code:" in line for line in lines)
    loss.similarity_fct = steep if name in RANKED else nn.CosineSimilarity(dim=0)
    assert "similarity_fct=" in explain(loss)


def test_a_cross_entropy_without_reduction_is_the_library_s() -> None:
    each = setting(cross_entropy_loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.warns(FallbackWarning, match="cross_entropy_loss"):
        mine = result(ours.GISTEmbedLoss, each)
    assert mine[0].shape == (10,)
    assert_same(mine, result(theirs.GISTEmbedLoss, each))


@pytest.mark.parametrize("name", CLASSES)
def test_said_once_for_batches_of_any_shape(name: str) -> None:
    loss = getattr(ours, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        for n in (4, 5, 6):
            built = loss(Encoder(), Guide()) if name in GUIDED else loss(Encoder())
            built.similarity_fct = steep if name in RANKED else nn.CosineSimilarity(dim=2, eps=n)
            if name in GUIDED:
                built.cross_entropy_loss = nn.CrossEntropyLoss(label_smoothing=1 / n)
            x = guided_columns(n, 4, 3)
            built([{"embedding": a, "guide": b} for a, b in zip(x[:3], x[3:], strict=True)], None)
    assert len([w for w in caught if w.category is FallbackWarning]) == 1


@pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning")
@pytest.mark.parametrize("options", [HARD, {"directions": ALL}])
def test_ragged_columns_where_the_library_takes_none(options: dict[str, Any]) -> None:
    x = [*columns(6, 4, 2), columns(9, 4, 1)[0]]
    for lib in (theirs, ours):
        with pytest.raises((RuntimeError, IndexError), match=r"mask|size"):
            lib.MultipleNegativesRankingLoss(Encoder(), **options).compute_loss_from_embeddings(x, None)
