# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.pml: losses with a weight vector for every class, against the library's n x C logits."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import Case, Largest, assert_same, embeddings, measure, peer
from torch import Tensor, nn

from pycl.compat import FallbackWarning, _peer
from pycl.compat.pml import losses as ours

theirs: Any = peer("pytorch_metric_learning.losses") if _peer.find_peer("pytorch_metric_learning") else None
pytestmark = [
    pytest.mark.usefixtures("nothing_falls_back"),
    pytest.mark.skipif(theirs is None, reason="pytorch_metric_learning is not installed"),
    pytest.mark.filterwarnings("ignore:__array_wrap__"),
]

if theirs is not None:
    from pytorch_metric_learning import distances, miners, reducers, regularizers

C, D = 9, 4
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 7, 7, 7, 3])
Z, WEIGHTS = embeddings(10, D, 1), embeddings(C, D, 3)
NAMES = {
    "ArcFaceLoss": "W",
    "CosFaceLoss": "W",
    "SphereFaceLoss": "W",
    "LargeMarginSoftmaxLoss": "W",
    "NormalizedSoftmaxLoss": "W",
    "ProxyAnchorLoss": "proxies",
    "ProxyNCALoss": "proxies",
}


def build(module: Any, name: str, n_classes: int = C, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(module, name)(num_classes=n_classes, embedding_size=D, **options)


def case(
    name: str, options: Callable[[], dict[str, Any]] = dict, z: Tensor = Z, labels: Tensor = LABELS, pairs: Any = None
) -> Case:
    """A loss of embeddings and of class weights, which get gradients, too."""

    def run(module: Any, z: Tensor, weights: Tensor) -> Tensor:
        loss = build(module, name, len(weights), **options())
        del loss._parameters[NAMES[name]]
        setattr(loss, NAMES[name], weights.t() if NAMES[name] == "W" else weights)
        return loss(z, labels, pairs)

    return Case(run, (z, WEIGHTS.to(z.dtype)))


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "p=1": lambda: {"distance": distances.CosineSimilarity(p=1)},
    "sum": lambda: {"reducer": reducers.SumReducer()},
    "non-zero": lambda: {"reducer": reducers.AvgNonZeroReducer()},
    "class weights": lambda: {"reducer": reducers.ClassWeightedReducer(torch.linspace(1, 2, C, dtype=Z.dtype))},
    "by anchor": lambda: {"reducer": reducers.PerAnchorReducer()},
    "embeddings": lambda: {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
    "weights": lambda: {"weight_regularizer": regularizers.LpRegularizer(), "weight_reg_weight": 0.2},
}


def same(found: Case, tolerance: float = 1e-12) -> None:
    assert_same(measure(found, ours), measure(found, theirs), tolerance)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_options(name: str, options: str) -> None:
    if name == "ProxyAnchorLoss" and options in ("class weights", "by anchor"):
        options = "sum"  # it has terms of classes, and two of them
    same(case(name, OPTIONS[options]))


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a margin": ("ArcFaceLoss", {"margin": 50, "scale": 10}),
    "no margin": ("ArcFaceLoss", {"margin": 0}),
    "a margin of a cosine": ("CosFaceLoss", {"margin": 0.1, "scale": 20}),
    "a scale of 0": ("CosFaceLoss", {"scale": 0}),
    "a negative scale": ("CosFaceLoss", {"scale": -3}),
    "three times the angle": ("SphereFaceLoss", {"margin": 3, "scale": 4}),
    "once the angle": ("LargeMarginSoftmaxLoss", {"margin": 1, "scale": 4}),
    "a temperature": ("NormalizedSoftmaxLoss", {"temperature": 0.5}),
    "a steep anchor": ("ProxyAnchorLoss", {"alpha": 64, "margin": 0.3}),
    "a steep softmax": ("ProxyNCALoss", {"softmax_scale": 8}),
}
if theirs is not None:
    product = distances.DotProductSimilarity(normalize_embeddings=False)
    squares = distances.LpDistance(power=2, normalize_embeddings=False)
    OTHERS |= {
        "a plain product": ("NormalizedSoftmaxLoss", {"distance": product}),
        "squares": ("NormalizedSoftmaxLoss", {"distance": distances.LpDistance(power=2)}),
        "plain squares": ("NormalizedSoftmaxLoss", {"distance": squares}),
        "products to proxies": ("ProxyAnchorLoss", {"distance": product}),
        "cosines of proxies": ("ProxyNCALoss", {"distance": distances.CosineSimilarity()}),
    }


@pytest.mark.parametrize("option", OTHERS)
def test_options_of_one_loss(option: str) -> None:
    name, options = OTHERS[option]
    same(case(name, lambda: options))


LEARNT = {"CosFaceLoss": "scale", "SphereFaceLoss": "scale", "NormalizedSoftmaxLoss": "temperature"}
LEARNT |= {"ProxyAnchorLoss": "alpha", "ProxyNCALoss": "softmax_scale"}


@pytest.mark.parametrize("name", LEARNT)
def test_numbers_that_are_learnt(name: str) -> None:
    def run(module: Any, z: Tensor, number: Tensor) -> Tensor:
        loss = build(module, name).double()
        setattr(loss, LEARNT[name], number)
        return loss(z, LABELS)

    same(Case(run, (Z, torch.tensor(0.7, dtype=torch.float64))))


def test_the_mean_angle_is_recorded() -> None:
    for name in ("ArcFaceLoss", "CosFaceLoss", "SphereFaceLoss"):
        mine, its = (build(m, name, collect_stats=True).double() for m in (ours, theirs))
        torch.testing.assert_close(mine(Z, LABELS), its(Z, LABELS))
        assert mine.avg_angle == pytest.approx(its.avg_angle, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_weight_samples(name: str) -> None:
    for miner in (miners.MultiSimilarityMiner(), miners.TripletMarginMiner(margin=0.5)):
        pairs = miner(Z, LABELS)
        assert len(pairs[0])
        same(case(name, pairs=pairs))
    same(case(name, pairs=(torch.zeros(0, dtype=torch.int64),) * 4))


EDGES = {
    "one sample": (Z[:1], LABELS[:1]),
    "one class": (Z, LABELS * 0 + 5),
    "a class each": (Z[:9], torch.arange(9)),
    "a zero": (torch.cat([Z[:2], Z[:1] * 0]), LABELS[:3]),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", NAMES)
def test_edges(name: str, edge: str) -> None:
    z, labels = EDGES[edge]
    same(case(name, z=z, labels=labels))


@pytest.mark.parametrize("name", NAMES)
def test_one_class_there_is(name: str) -> None:
    mine, its = (build(m, name, 1).double()(Z, LABELS * 0) for m in (ours, theirs))
    torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near_float64(name: str) -> None:
    mine = measure(case(name, z=Z.float()), ours)
    assert_same(mine, measure(case(name), theirs), 1e-5)


@pytest.mark.parametrize("name", ["ArcFaceLoss", "CosFaceLoss", "SphereFaceLoss", "LargeMarginSoftmaxLoss"])
@pytest.mark.parametrize("scale", [1, 1e4])
def test_extremes_are_finite(name: str, scale: float) -> None:
    """Embeddings in the very direction of their class, or opposite to it: the library's angle has no slope there."""
    for factor in (1.0, -1.0, 1e-20, 0.0):
        z = (factor * torch.eye(D)[LABELS[:6]]).requires_grad_()
        loss = build(ours, name, D, scale=scale)
        loss.W.data = torch.eye(D)
        value = loss(z, LABELS[:6])
        value.backward()
        assert value.isfinite()
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert loss.W.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_attributes_and_weights(name: str) -> None:
    mine, its = build(ours, name), build(theirs, name)
    assert mine.__dict__.keys() == its.__dict__.keys()
    assert repr(mine) == repr(its)
    assert {k: v.shape for k, v in mine.state_dict().items()} == {k: v.shape for k, v in its.state_dict().items()}
    for key, value in its.state_dict().items():
        assert torch.equal(mine.state_dict()[key], value)
    its.load_state_dict(mine.state_dict())
    torch.testing.assert_close(mine.double()(Z, LABELS), its.double()(Z, LABELS))
    assert build(ours, name, weight_init_func=nn.init.zeros_).state_dict()[NAMES[name]].eq(0).all()
    if hasattr(its, "get_logits"):
        torch.testing.assert_close(mine.get_logits(Z), its.get_logits(Z), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_pickle_and_copy(name: str) -> None:
    loss = build(ours, name).double()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(other) is getattr(ours, name)
        torch.testing.assert_close(other(Z, LABELS), loss(Z, LABELS))


@pytest.mark.parametrize("name", NAMES)
def test_weights_take_the_dtype_of_the_batch(name: str) -> None:
    for dtype in (torch.float64, torch.float16):
        mine, its = build(ours, name), build(theirs, name)
        assert mine(Z.to(dtype), LABELS).dtype == its(Z.to(dtype), LABELS).dtype == dtype
        weights = getattr(mine, NAMES[name])
        assert weights.dtype == getattr(its, NAMES[name]).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_an_optimizer(name: str) -> None:
    def trained(module: Any) -> list[Tensor]:
        loss = build(module, name).double()
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        values = []
        for step in range(4):
            optimizer.zero_grad()
            value = loss(Z + 0.1 * step * Z.flip(0), LABELS.roll(step))
            value.backward()
            optimizer.step()
            values.append(value.detach())
        return [*values, *(p.detach() for p in loss.parameters())]

    for mine, its in zip(trained(ours), trained(theirs), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_neither_logits_nor_similarities_are_stored(name: str) -> None:
    n, n_classes = 512, 20_000
    z = embeddings(n, D, 1, torch.float32).requires_grad_()
    loss = build(ours, name, n_classes)
    with Largest() as largest:
        loss(z, torch.arange(n) * 39).backward()
    assert largest.numel <= 6 * n_classes  # a column has six statistics
    assert largest.numel < n * n_classes / 50


WRONG: dict[str, tuple[Any, ...]] = {
    "no labels": (Z,),
    "too few labels": (Z, LABELS[:3]),
    "labels of two dimensions": (Z, LABELS[:, None]),
    "references": (Z, LABELS, None, Z + 1, LABELS),
    "embeddings of three dimensions": (Z[:, None], LABELS),
    "other features": (Z[:, :3], LABELS),
    "labels beyond C": (Z, LABELS + 7),
    "labels of float64": (Z, LABELS.double()),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", NAMES)
def test_errors_of_the_library(name: str, wrong: str, fallbacks: None) -> None:
    def outcome(module: Any) -> Any:
        try:
            return float(build(module, name).double()(*WRONG[wrong]).detach())
        except Exception as error:
            return type(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        expected = outcome(theirs)
        found = outcome(ours)
    if isinstance(expected, float):  # ProxyNCALoss, to which labels beyond are classes without a proxy
        assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    elif wrong == "other features":  # the engine says what was expected and what came
        assert issubclass(found, (expected, ValueError))
    else:
        assert found is expected


@pytest.mark.parametrize("name", NAMES)
def test_other_options_say_so(name: str, fallbacks: None) -> None:
    def run(module: Any) -> Tensor:
        loss = build(module, name).double()
        loss.distance = distances.CosineSimilarity(power=2)
        return loss(Z, LABELS)

    with pytest.warns(FallbackWarning, match=f"{name} runs the library's own code: a distance of power=2"):
        torch.testing.assert_close(run(ours), run(theirs))


def test_another_cross_entropy(fallbacks: None) -> None:
    def run(module: Any, entropy: nn.Module, labels: Tensor = LABELS) -> Tensor:
        loss = build(module, "NormalizedSoftmaxLoss").double()
        loss.cross_entropy = entropy
        return loss(Z, labels)

    for entropy in (
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="none", ignore_index=7),
        nn.CrossEntropyLoss(reduction="none", weight=torch.arange(C).double()),
    ):
        _peer._warned.clear()
        with pytest.warns(FallbackWarning, match="a cross_entropy of its own"):
            torch.testing.assert_close(run(ours, entropy), run(theirs, entropy))
    ignored, plain = LABELS.masked_fill(LABELS == 7, -100), nn.CrossEntropyLoss(reduction="none")
    with pytest.warns(FallbackWarning, match="labels outside"):
        torch.testing.assert_close(run(ours, plain, ignored), run(theirs, plain, ignored))


def test_sub_centers_are_the_librarys() -> None:
    """The largest of several logits of a class is not a sum over pairs."""
    assert ours.SubCenterArcFaceLoss is theirs.SubCenterArcFaceLoss
