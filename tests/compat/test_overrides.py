# SPDX-License-Identifier: Apache-2.0
"""What a user may set on a loss or override in it counts in the drop-in as it does in the library."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from overridable import OVERRIDABLE, assert_equal, value, x
from parity import peer

import pycl.compat.lightly
import pycl.compat.open_clip

BY_NAME = {loss.name: loss for loss in OVERRIDABLE}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[warnings.WarningMessage]]:
    monkeypatch.setattr("pycl.compat._peer._warned", set())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said


@pytest.mark.parametrize("name", BY_NAME)
def test_no_attribute_is_forgotten(name: str) -> None:
    assert BY_NAME[name].attributes() == BY_NAME[name].settings.keys()


SETTINGS = [
    pytest.param(loss.name, attribute, k, id=f"{loss.name}.{attribute} {k}")
    for loss in OVERRIDABLE
    for attribute, values in loss.settings.items()
    for k in range(len(values))
]


@pytest.mark.parametrize(("name", "attribute", "k"), SETTINGS)
def test_an_attribute_that_is_set(name: str, attribute: str, k: int) -> None:
    loss = BY_NAME[name]
    settings = {attribute: loss.settings[attribute][k]}
    assert_equal(value(loss.drop_in, loss, settings), value(loss.theirs, loss, settings))


@pytest.mark.parametrize(("name", "k"), [(loss.name, k) for loss in OVERRIDABLE for k in range(len(loss.together))])
def test_attributes_that_count_together(name: str, k: int) -> None:
    loss = BY_NAME[name]
    assert_equal(*(value(kind, loss, loss.together[k]) for kind in (loss.drop_in, loss.theirs)))


def changed(result: Any) -> Any:
    """Other logits, labels or losses than the method's own."""
    if isinstance(result, tuple):
        return tuple(map(changed, result))
    return 1.5 * result if result.is_floating_point() else result.roll(1)


def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(*args: Any, **options: Any) -> Any:
        return changed(original(*args, **options))

    return method


METHODS = {
    "DCLLoss": ["_loss"],
    "DCLWLoss": ["_loss"],
    "MSNLoss": ["regularization_loss"],
    "PMSNLoss": ["regularization_loss"],
    "SwaVLoss": ["subloss"],
    "ClipLoss": ["get_ground_truth", "get_logits"],
    "SigLipLoss": ["_loss", "get_ground_truth", "get_logits"],
    "CoCaLoss": ["get_ground_truth", "get_logits"],
    "DistillClipLoss": ["dist_loss", "get_ground_truth", "get_logits"],
}
CALLED = {"regularization_loss"}  # by the fused loss too
HOOKS = [(name, method) for name, methods in METHODS.items() for method in methods]


@pytest.mark.parametrize("name", BY_NAME)
def test_no_method_is_forgotten(name: str) -> None:
    assert BY_NAME[name].methods() == METHODS.get(name, [])


@pytest.mark.parametrize("way", ["subclass", "instance", "patch"])
@pytest.mark.parametrize(("name", "method"), HOOKS)
def test_an_overridden_method_runs(
    name: str, method: str, way: str, quiet: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = BY_NAME[name]
    before = value(loss.theirs, loss, {})
    if way == "patch":
        owner = next(c for c in loss.theirs.__mro__ if method in vars(c))
        monkeypatch.setattr(owner, method, wrapped(vars(owner)[method]))
    found = []
    for kind in (loss.drop_in, loss.theirs):
        if way == "subclass":
            kind = type("Mine", (kind,), {method: wrapped(getattr(kind, method))})
        made = kind(*loss.args)
        if way == "instance":
            setattr(made, method, wrapped(getattr(made, method)))
        result = made(*loss.inputs)
        found.append([t.double() for t in (result if isinstance(result, tuple) else (result,))])
    assert_equal(*found)
    assert any((a != b).any() for a, b in zip(found[1], before, strict=True))
    if method in CALLED:
        return
    assert len([w for w in quiet if f"has a {method} of its own" in str(w.message)]) == 1


def test_a_function_of_the_library_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    swav_loss, loss = peer("lightly.loss.swav_loss"), BY_NAME["SwaVLoss"]
    ours = pycl.compat.lightly.sinkhorn
    monkeypatch.setattr(swav_loss, "sinkhorn", ours)  # as a framework does that puts drop-ins in the library's places
    assert loss.drop_in()._pycl_why_not() == ""
    assert ours(x(0), iterations=0).isfinite().all()  # lightly's own, not itself without end
    monkeypatch.setattr(swav_loss, "sinkhorn", lambda out, **_: out.softmax(1))
    assert_equal(*(value(kind, loss, {}) for kind in (loss.drop_in, loss.theirs)))


@pytest.mark.parametrize("name", ["prototype_probabilities", "sharpen", "sinkhorn"])
def test_a_function_of_the_prototypes_that_is_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    msn_loss, loss = peer("lightly.loss.msn_loss"), BY_NAME["MSNLoss"]
    monkeypatch.setattr(msn_loss, name, wrapped(getattr(msn_loss, name)))
    assert_equal(*(value(kind, loss, {}) for kind in (loss.drop_in, loss.theirs)))
    assert loss.drop_in()._pycl_why_not() == f"another {name} in lightly.loss.msn_loss"


@pytest.mark.parametrize(
    ("name", "function"), [("ClipLoss", "gather_features"), ("SigLipLoss", "neighbour_exchange_bidir_with_grad")]
)
def test_gathering_that_is_replaced(name: str, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = getattr(pycl.compat.open_clip, name)(world_size=2)
    assert loss._pycl_why_not() == ""
    monkeypatch.setattr(peer("open_clip.loss"), function, print)
    assert loss._pycl_why_not() == f"another {function} in open_clip.loss"
