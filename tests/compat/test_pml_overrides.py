# SPDX-License-Identifier: Apache-2.0
"""What a user sets or overrides in pytorch-metric-learning's losses, distances and reducers: the library's numbers."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from overrides import attributes, hooked, methods, overridden, vary
from parity import embeddings, peer
from torch import Tensor, nn

from pycl.compat import FallbackWarning, _peer, explain
from pycl.compat.pml import losses as ours

theirs: Any = peer("pytorch_metric_learning.losses") if _peer.find_peer("pytorch_metric_learning") else None
pytestmark = [
    pytest.mark.skipif(theirs is None, reason="pytorch_metric_learning is not installed"),
    pytest.mark.filterwarnings("ignore::pycl.compat.FallbackWarning"),
]

if theirs is not None:
    from pytorch_metric_learning import distances, reducers, regularizers

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
Z = embeddings(10, 4, 1)
OF_CLASSES = {"num_classes": 10, "embedding_size": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "NTXentLoss": {"temperature": 0.5},
    "SupConLoss": {"temperature": 0.5},
    "MultiSimilarityLoss": {"alpha": 2.0, "beta": 8.0},
    "GeneralizedLiftedStructureLoss": {"neg_margin": 1.0, "pos_margin": 0.0},
    "CircleLoss": {"m": 0.4, "gamma": 8.0},
    "NCALoss": {"softmax_scale": 2.0},
    "InstanceLoss": {"gamma": 8.0},
    "ArcFaceLoss": OF_CLASSES | {"scale": 8.0},
    "CosFaceLoss": OF_CLASSES | {"scale": 8.0},
    "SphereFaceLoss": OF_CLASSES | {"scale": 2.0},
    "LargeMarginSoftmaxLoss": OF_CLASSES | {"scale": 2.0},
    "NormalizedSoftmaxLoss": OF_CLASSES | {"temperature": 0.3},
    "ProxyAnchorLoss": OF_CLASSES | {"alpha": 8.0},
    "ProxyNCALoss": OF_CLASSES | {"softmax_scale": 2.0},
}
CLASSES = list(OPTIONS) if theirs else []
OVER_TEMPERATURE = CLASSES[:2]
WRAPPERS = ["CrossBatchMemory", "SelfSupervisedLoss"] if theirs else []
Prepare = Callable[[Any], None]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_peer, "_warned", set())
    monkeypatch.delenv("PYCL_STRICT", raising=False)


def nothing(_: Any) -> None:
    pass


def result(loss: nn.Module, prepare: Prepare = nothing) -> list[Tensor]:
    """The values of a loss for three batches and the gradient of their sum."""
    prepare(loss)
    z = Z.clone().requires_grad_()
    values = []
    for step in range(3):
        batch = z + 0.3 * step * z.flip(0)
        if isinstance(loss, theirs.SelfSupervisedLoss):
            values.append(loss(batch, batch.roll(1, 0) + 0.1))
        else:
            values.append(loss(batch, LABELS.roll(step)))
    total = torch.stack([v.sum() for v in values]).sum()
    total.backward()
    assert z.grad is not None
    return [*(v.detach() for v in values), z.grad]


def assert_same(mine: list[Tensor], its: list[Tensor]) -> None:
    for a, b in zip(mine, its, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)  # the queue is float64, its first batch's copy too


def inner(module: Any, name: str = "NTXentLoss", kind: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)  # of class weights
    return (kind or getattr(module, name))(**OPTIONS[name], **options)


def build(module: Any, name: str, kind: Any = None) -> Any:
    kind = kind or getattr(module, name)
    if name == "CrossBatchMemory":
        return kind(inner(module), 4, 25)
    if name == "SelfSupervisedLoss":
        return kind(inner(module))
    return inner(module, name, kind)


def every_method(static: bool = True) -> list[tuple[str, str]]:
    skipped = {"check_loss_support", "supported_losses"}  # of names, called when the loss is built
    library = "pytorch_metric_learning"
    found = [(n, m) for n in CLASSES + WRAPPERS for m in methods(getattr(theirs, n), library)]
    of_all = {*methods(theirs.BaseMetricLossFunction, library)} - {"forward", "compute_loss"} if theirs else {}
    found = [(n, m) for n, m in found if m not in of_all or n in OVER_TEMPERATURE + WRAPPERS]
    return [(n, m) for n, m in found if m not in skipped and (static or not is_static(n, m))]


def is_static(name: str, method: str) -> bool:
    return isinstance(inspect.getattr_static(getattr(theirs, name), method), staticmethod)


def outcome(run: Callable[[], list[Tensor]]) -> Any:
    """What a call gives, or the kind of its error: changed in every way, the library may raise."""
    try:
        return run()
    except Exception as error:
        return type(error)


def assert_same_outcome(run: Callable[[Any], list[Tensor]]) -> Any:
    its = outcome(lambda: run(theirs))
    mine = outcome(lambda: run(ours))
    if isinstance(its, type):
        assert mine is its
    else:
        assert not isinstance(mine, type), mine
        assert_same(mine, its)
    return its


@pytest.mark.parametrize(("name", "method"), every_method())
def test_overridden_methods(name: str, method: str) -> None:
    assert_same_outcome(lambda m: result(build(m, name, overridden(getattr(m, name), method))))


@pytest.mark.parametrize(("name", "method"), every_method())
def test_methods_of_one_object(name: str, method: str) -> None:
    assert_same_outcome(lambda m: result(build(m, name), lambda loss: vary(loss, method)))


UNREAD = {"collect_stats", "embedding_reg_weight", "weight_init_func", "m", "has_been_filled", "miner"}  # by now


def every_attribute() -> list[tuple[str, str]]:
    return [(name, a) for name in CLASSES + WRAPPERS for a in attributes(build(theirs, name))]


@pytest.mark.parametrize(("name", "attribute"), every_attribute())
def test_attributes_that_are_set(name: str, attribute: str) -> None:
    its = assert_same_outcome(lambda m: result(build(m, name), lambda loss: vary(loss, attribute)))
    if attribute not in UNREAD:
        assert not all(torch.equal(a, b) for a, b in zip(its, result(build(theirs, name)), strict=True))


PARTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "CosineSimilarity": ("distance", lambda: distances.CosineSimilarity()),
    "DotProductSimilarity": ("distance", lambda: distances.DotProductSimilarity(normalize_embeddings=False)),
    "MeanReducer": ("reducer", lambda: reducers.MeanReducer()),
    "SumReducer": ("reducer", lambda: reducers.SumReducer()),
    "AvgNonZeroReducer": ("reducer", lambda: reducers.AvgNonZeroReducer()),
    "ClassWeightedReducer": ("reducer", lambda: reducers.ClassWeightedReducer(torch.linspace(1, 2, 10).double())),
    "PerAnchorReducer": ("reducer", lambda: reducers.PerAnchorReducer()),
    "MultipleReducers": ("reducer", lambda: reducers.MultipleReducers({"loss": reducers.SumReducer()})),
}


def with_part(module: Any, name: str, part: str, prepare: Prepare, after: bool) -> list[Tensor]:
    """A loss whose part is another, before the loss is built or, as the copy that it has made, after."""
    option, make = PARTS[part]
    made = make()
    if not after:
        prepare(made)
    loss = inner(module, name, **{option: made})
    return result(loss, lambda loss: prepare(getattr(loss, option)) if after else None)


def parts_of(name: str) -> list[str]:
    """What is part of a loss's form; the reducers of most losses are given terms of their own, whatever they are."""
    return list(PARTS) if name in OVER_TEMPERATURE else ["CosineSimilarity"]


PART_METHODS = [
    (name, part, m)
    for name in CLASSES
    for part in parts_of(name)
    for m in methods(type(PARTS[part][1]()), "pytorch_metric_learning")
]
PART_ATTRIBUTES = [(name, part, a) for name in CLASSES for part in parts_of(name) for a in attributes(PARTS[part][1]())]


@pytest.mark.parametrize(("name", "part", "method"), PART_METHODS)
def test_methods_of_parts(name: str, part: str, method: str) -> None:
    assert_same_outcome(lambda m: with_part(m, name, part, lambda p: vary(p, method), after=True))

    def become(made: Any) -> None:
        made.__class__ = overridden(type(made), method)

    assert_same_outcome(lambda m: with_part(m, name, part, become, after=False))


@pytest.mark.parametrize(("name", "part", "attribute"), PART_ATTRIBUTES)
def test_attributes_of_parts(name: str, part: str, attribute: str) -> None:
    assert_same_outcome(lambda m: with_part(m, name, part, lambda p: vary(p, attribute), after=True))


@pytest.mark.parametrize(("name", "part"), [(name, part) for name in CLASSES for part in parts_of(name)])
def test_hooks_on_parts(name: str, part: str) -> None:
    its = assert_same_outcome(lambda m: with_part(m, name, part, hooked, after=True))
    plain = with_part(theirs, name, part, nothing, after=True)
    assert isinstance(its, type) or not torch.equal(its[0], plain[0])


NUMBERS = {
    "0-d": torch.tensor(0.3, dtype=torch.float64),
    "1-d": torch.full((1,), 0.3, dtype=torch.float64),
    "2-d": torch.full((1, 1), 0.3, dtype=torch.float64),
    "integer": 1,
    "negative": -0.5,
    "zero": 0.0,
}


@pytest.mark.parametrize("name", OVER_TEMPERATURE)
@pytest.mark.parametrize("temperature", NUMBERS)
def test_temperatures(name: str, temperature: str) -> None:
    def run(module: Any) -> list[Tensor]:
        return result(inner(module, name), lambda loss: setattr(loss, "temperature", NUMBERS[temperature]))

    its = outcome(lambda: run(theirs))
    mine = outcome(lambda: run(ours))
    for a, b in zip(mine, its, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, equal_nan=True)


class Reader(nn.Module):
    """Adds a loss that looks at the list of pairs which it is given."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        base = module.NTXentLoss

        class NTXentLoss(base):
            def compute_loss(self, z: Tensor, labels: Tensor, pairs: Any, *refs: Tensor) -> Any:
                found = super().compute_loss(z, labels, pairs, *refs)
                found["loss"]["losses"] = found["loss"]["losses"] * len(pairs[0])
                return found

        self.loss = NTXentLoss(reducer=reducers.SumReducer())


def test_a_loss_in_a_queue_that_reads_the_list_of_pairs() -> None:
    assert_same_outcome(lambda m: result(m.CrossBatchMemory(Reader(m).loss, 4, 25)))


@pytest.mark.parametrize("name", OVER_TEMPERATURE)
def test_a_hook_before_the_loss_in_a_queue_gets_a_list(name: str) -> None:
    def seen(module: Any) -> list[int]:
        sizes: list[int] = []
        queue = module.CrossBatchMemory(inner(module, name), 4, 25)
        queue.loss.register_forward_pre_hook(lambda _, args: sizes.extend(map(len, args[2])))
        result(queue)
        return sizes

    assert seen(ours) == seen(theirs)
    assert len(seen(theirs)) == 12


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", CLASSES)
def test_result_has_the_library_s_dtype(name: str, dtype: torch.dtype, half: torch.dtype | None) -> None:
    weights = torch.ones(10)
    options: list[Callable[[], dict[str, Any]]] = [
        dict,
        lambda: {"reducer": reducers.SumReducer()},
        lambda: {"reducer": reducers.PerAnchorReducer()},
        lambda: {"reducer": reducers.AvgNonZeroReducer()},
        lambda: {"reducer": reducers.ClassWeightedReducer(weights)},
        lambda: {"embedding_regularizer": regularizers.LpRegularizer()},
    ]
    pairs = tuple(torch.tensor(x) for x in ([0, 3], [1, 4], [0, 3], [4, 0]))
    calls = [(LABELS, None), (LABELS, pairs), (torch.arange(10), None)]  # the last has no positives
    options = options if name in OVER_TEMPERATURE else options[:1]
    with warnings.catch_warnings(), torch.autocast("cpu", half) if half else contextlib.nullcontext():
        warnings.simplefilter("ignore", FallbackWarning)
        for option in options:
            for labels, listed in calls:
                try:
                    its = inner(theirs, name, **option())(Z.to(dtype), labels, listed)
                except (NotImplementedError, ValueError):  # no cdist in bfloat16; InstanceLoss refuses lists
                    continue
                mine = inner(ours, name, **option())(Z.to(dtype), labels, listed)
                assert mine.dtype == its.dtype
                torch.testing.assert_close(mine, its, rtol=5e-2, atol=5e-2, equal_nan=True)


def test_a_check_of_pairs_that_refuses() -> None:
    def refuse(*_: Tensor) -> None:
        raise NotImplementedError

    for module in (theirs, ours):
        own = type("SupConLoss", (module.SupConLoss,), {"_assert_either_pos_or_neg": staticmethod(refuse)})
        with pytest.raises(NotImplementedError):
            own()(Z, LABELS)


@pytest.mark.parametrize("name", CLASSES + WRAPPERS)
def test_explained(name: str) -> None:
    loss = build(ours, name)
    lines = [line.split() for line in explain(loss).splitlines()]
    assert len([line for line in lines if line[1:] == ["1", "fused"]]) == 1 + (name in WRAPPERS)
    getattr(loss, "loss", loss).distance = distances.LpDistance(p=1)
    assert explain(loss).count("distance=LpDistance") == 1 + (name in WRAPPERS)
    if name in WRAPPERS:
        loss.loss = theirs.TripletMarginLoss()
        assert "TripletMarginLoss is the library's" in explain(loss)
