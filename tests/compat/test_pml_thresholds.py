# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.pml: losses of thresholds, neighbours and circles against the library's matrices."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import Case, Largest, assert_same, embeddings, measure, peer
from torch import Tensor

from pycl.compat import FallbackWarning, _peer
from pycl.compat.pml import losses as ours

theirs: Any = peer("pytorch_metric_learning.losses") if _peer.find_peer("pytorch_metric_learning") else None
pytestmark = [
    pytest.mark.skipif(theirs is None, reason="pytorch_metric_learning is not installed"),
    pytest.mark.usefixtures("nothing_falls_back"),
]

if theirs is not None:
    from pytorch_metric_learning import distances, miners, reducers, regularizers
    from pytorch_metric_learning.utils import loss_and_miner_utils as listing

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
PAIRS = torch.arange(5).repeat(2)
Z = embeddings(10, 4, 1)
REFS, REF_LABELS = embeddings(7, 4, 2), torch.tensor([0, 1, 3, 3, 2, 9, 1])
OVER_PAIRS = ["MultiSimilarityLoss", "GeneralizedLiftedStructureLoss"]
NAMES = [*OVER_PAIRS, "CircleLoss", "NCALoss", "InstanceLoss"]
WITH_REFS = [*OVER_PAIRS, "NCALoss"]
OF_ANY_SIMILARITY = [*OVER_PAIRS, "NCALoss", "NTXentLoss", "SupConLoss"]


def case(
    name: str, options: Callable[[], dict[str, Any]] = dict, z: Tensor = Z, labels: Tensor = LABELS, pairs: Any = None
) -> Case:
    return Case(lambda m, z: getattr(m, name)(**options())(z, labels, pairs), (z,))


def with_refs(name: str, options: Callable[[], dict[str, Any]] = dict, pairs: Any = None) -> Case:
    return Case(lambda m, z, r: getattr(m, name)(**options())(z, LABELS, pairs, r, REF_LABELS), (Z, REFS))


def same(found: Case, tolerance: float = 1e-12) -> None:
    assert_same(measure(found, ours), measure(found, theirs), tolerance)


def close_to_circle(name: str) -> float:
    """The library's ``Softplus`` is the identity from 20 on: e^-20 less."""
    return 1e-9 if name == "CircleLoss" else 1e-12


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "p=1": lambda: {"distance": distances.CosineSimilarity(p=1)},
    "sum": lambda: {"reducer": reducers.SumReducer()},
    "non-zero": lambda: {"reducer": reducers.AvgNonZeroReducer()},
    "class weights": lambda: {"reducer": reducers.ClassWeightedReducer(torch.linspace(1, 2, 10, dtype=Z.dtype))},
    "by anchor": lambda: {"reducer": reducers.PerAnchorReducer()},
    "regularizer": lambda: {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_options(name: str, options: str) -> None:
    for labels in (LABELS, PAIRS):
        same(case(name, OPTIONS[options], labels=labels), close_to_circle(name))
    if name in WITH_REFS:
        same(with_refs(name, OPTIONS[options]))


NUMBERS: dict[str, list[dict[str, Any]]] = {
    "MultiSimilarityLoss": [{"alpha": 0.5, "beta": 3, "base": 0}, {"alpha": -2, "beta": -1.5, "base": -0.3}],
    "GeneralizedLiftedStructureLoss": [{"neg_margin": 0.5, "pos_margin": 0.2}, {"neg_margin": -3}],
    "CircleLoss": [{"m": 0.25, "gamma": 256}, {"m": 0, "gamma": 1.5}],
    "NCALoss": [{"softmax_scale": 0.3}, {"softmax_scale": 20}],
    "InstanceLoss": [{"gamma": 1}, {"gamma": -2}, {"gamma": 0}],
}


@pytest.mark.parametrize("name", NAMES)
def test_numbers(name: str) -> None:
    for numbers in NUMBERS[name]:
        same(case(name, lambda numbers=numbers: numbers), close_to_circle(name))


def test_learnt_numbers() -> None:
    def run(module: Any, z: Tensor, alpha: Tensor, beta: Tensor, base: Tensor) -> Tensor:
        loss = module.MultiSimilarityLoss()
        loss.alpha, loss.beta, loss.base = alpha, beta, base
        return loss(z, LABELS)

    numbers = (torch.tensor(x, dtype=torch.float64) for x in (2.0, 7.0, 0.3))
    same(Case(run, (Z, *numbers)))


DISTANCES: dict[str, Callable[[], Any]] = {
    "cosine": lambda: distances.CosineSimilarity(),
    "product": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
    "squares": lambda: distances.LpDistance(power=2),
    "plain squares": lambda: distances.LpDistance(power=2, normalize_embeddings=False),
}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", OF_ANY_SIMILARITY)
def test_distances(name: str, distance: str) -> None:
    def options() -> dict[str, Any]:
        return {"distance": DISTANCES[distance]()}

    same(case(name, options))
    same(case(name, options, labels=PAIRS))
    same(with_refs(name, options))


def test_roots_of_distances() -> None:
    """Equal points have a distance of 0 and no slope."""
    for normalize in (True, False):
        z = torch.cat([Z, Z[:3]])
        labels = torch.cat([LABELS, LABELS[:2], LABELS[9:]])
        for of_batch in (labels, labels // 2):
            same(
                case(
                    "GeneralizedLiftedStructureLoss",
                    lambda n=normalize: {"distance": distances.LpDistance(normalize_embeddings=n)},
                    z=z,
                    labels=of_batch,
                ),
                1e-7,  # a square that is rounded to 1e-16 instead of 0 has a root of 1e-8
            )


EDGES = {
    "one class": (Z, LABELS * 0),
    "a class each": (Z, torch.arange(10)),
    "one point": (Z[:1], LABELS[:1]),
    "two of a class": (Z[:2], LABELS[:2]),
    "two classes of one": (Z[:2], torch.arange(2)),
    "once apart": (Z, torch.arange(10) // 9),
    "a zero": (torch.cat([Z[:4], Z[:1] * 0]), LABELS[:5]),
    "float labels": (Z, LABELS / 4),
    "empty": (Z[:0], LABELS[:0]),
}

NOTHING = {("NCALoss", "a class each"), ("NCALoss", "two classes of one"), ("InstanceLoss", "empty")}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", NAMES)
def test_edges(name: str, edge: str) -> None:
    z, labels = EDGES[edge]
    value, expected = (getattr(m, name)()(z, labels).detach() for m in (ours, theirs))
    if expected.isnan():  # a mean of no terms
        assert (name, edge) in NOTHING
        assert value.isnan()
    elif (name, edge) == ("NCALoss", "one class"):
        assert abs(expected) < 1e-15
        assert value == 0
    else:
        same(case(name, z=z, labels=labels), close_to_circle(name))


@pytest.mark.parametrize("name", WITH_REFS)
@pytest.mark.parametrize("sizes", [(10, 1), (1, 7), (1, 1), (2, 2)])
def test_few_references(name: str, sizes: tuple[int, int]) -> None:
    n, m = sizes

    def run(module: Any, z: Tensor, refs: Tensor) -> Tensor:
        return getattr(module, name)()(z, LABELS[:n], None, refs, REF_LABELS[:m])

    same(Case(run, (Z[:n], REFS[:m])))


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_all_pairs_as_a_list(name: str) -> None:
    pairs = listing.get_all_pairs_indices(LABELS)
    with Largest() as largest:
        ours.MultiSimilarityLoss()(Z, LABELS, pairs)
    assert largest.numel <= max(len(pairs[2]), Z.numel())
    same(case(name, pairs=pairs))
    same(with_refs(name, pairs=listing.get_all_pairs_indices(LABELS, REF_LABELS)))


def test_pairs_weight_points() -> None:
    for miner in (miners.MultiSimilarityMiner(), miners.TripletMarginMiner(margin=0.5)):
        same(case("NCALoss", pairs=miner(Z, LABELS)))
        same(with_refs("NCALoss", pairs=miner(Z, LABELS, REFS, REF_LABELS)))


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near_float64(name: str) -> None:
    assert_same(measure(case(name, z=Z.float()), ours), measure(case(name), theirs), 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_extremes_are_finite(name: str) -> None:
    for z in (Z.float() * 1e15, Z.float() * 1e-30, Z.float() * 0, Z[:1].repeat(10, 1).float(), -Z.half() * 6e4):
        x = z.clone().requires_grad_()
        loss = getattr(ours, name)()(x, LABELS)
        loss.backward()
        assert loss.isfinite()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_attributes_and_copies(name: str) -> None:
    mine, its = getattr(ours, name)(), getattr(theirs, name)()
    assert mine.state_dict() == its.state_dict() == {}
    assert mine.__dict__.keys() == its.__dict__.keys()
    assert repr(mine) == repr(its)
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert type(other) is getattr(ours, name)
        torch.testing.assert_close(other(Z, LABELS), mine(Z, LABELS))


@pytest.mark.parametrize("name", NAMES)
def test_no_matrix_is_made(name: str) -> None:
    n, d = 2048, 16
    z = embeddings(n, d, 1, torch.float32).requires_grad_()
    with Largest() as largest:
        getattr(ours, name)()(z, torch.arange(n) % 256).backward()
    assert largest.numel < n * n / 10


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_queues(name: str) -> None:
    def total(module: Any) -> Tensor:
        queue = module.CrossBatchMemory(getattr(module, name)(), 4, 25)
        return torch.stack([queue(Z + 0.2 * step * Z.flip(0), LABELS.roll(step)) for step in range(4)]).sum()

    torch.testing.assert_close(total(ours), total(theirs), rtol=1e-7, atol=0)  # its first batch's copy is float32


OTHERS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "a distance of power=2": ("MultiSimilarityLoss", lambda: {"distance": distances.CosineSimilarity(power=2)}),
    "distance=LpDistance": ("MultiSimilarityLoss", lambda: {"distance": distances.LpDistance()}),
    "distance=LpDistance.p=1": ("GeneralizedLiftedStructureLoss", lambda: {"distance": distances.LpDistance(p=1)}),
    "distance=SNRDistance": ("NCALoss", lambda: {"distance": distances.SNRDistance()}),
    "a softmax_scale that is not positive": ("NCALoss", lambda: {"softmax_scale": 0}),
    "collect_stats": ("InstanceLoss", lambda: {"distance": distances.CosineSimilarity(collect_stats=True)}),
    "m or gamma": ("CircleLoss", lambda: {"gamma": -2}),
}


@pytest.mark.parametrize("why", OTHERS)
def test_other_options_say_so(why: str, fallbacks: None) -> None:
    name, options = OTHERS[why]
    with pytest.warns(FallbackWarning, match=f"{name} runs the library's own code.*{why}"):
        same(case(name, options))


def test_circles_of_references_and_lists_say_so(fallbacks: None) -> None:
    with pytest.warns(FallbackWarning, match="references"):
        same(with_refs("CircleLoss"))
    with pytest.warns(FallbackWarning, match="indices_tuple"):
        same(case("CircleLoss", pairs=miners.MultiSimilarityMiner()(Z, LABELS)))


WRONG: dict[str, tuple[Any, ...]] = {
    "too few labels": (Z, LABELS[:3]),
    "labels of two dimensions": (Z, LABELS[:, None]),
    "neither labels nor pairs": (Z,),
    "embeddings of three dimensions": (Z[:, None], LABELS),
    "too few labels of references": (Z, LABELS, None, REFS, LABELS),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", WRONG)
def test_errors_of_the_library(name: str, wrong: str) -> None:
    for module in (theirs, ours):
        with pytest.raises(ValueError, match=r"labels|embeddings|ref"):
            getattr(module, name)()(*WRONG[wrong])


def test_what_instance_loss_refuses() -> None:
    pairs = listing.get_all_pairs_indices(LABELS)
    for module in (theirs, ours):
        for more in ((pairs,), (None, REFS, REF_LABELS)):
            with pytest.raises(ValueError, match="not supported"):
                module.InstanceLoss()(Z, LABELS, *more)


def test_the_worst_neighbours_count() -> None:
    """Opposite points at a steep softmax: float32 rounds their probability to 0, and the library leaves them out."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert theirs.NCALoss(50)(z, labels).isnan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(ours.NCALoss(50)(z, labels)) == pytest.approx(200, abs=1e-3)
