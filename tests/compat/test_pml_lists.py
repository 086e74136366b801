# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.pml: lists of pairs, as from a miner."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from parity import Case, Largest, assert_same, embeddings, measure, peer
from torch import Tensor

from pycl.compat import FallbackWarning, _peer
from pycl.compat.pml import losses as ours

theirs = peer("pytorch_metric_learning.losses") if _peer.find_peer("pytorch_metric_learning") else None
pytestmark = [
    pytest.mark.skipif(theirs is None, reason="pytorch_metric_learning is not installed"),
    pytest.mark.usefixtures("nothing_falls_back"),
]

if theirs is not None:
    from pytorch_metric_learning import distances, miners, reducers, regularizers
    from pytorch_metric_learning.utils import loss_and_miner_utils as listing

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
Z = embeddings(10, 4, 1)
REFS, REF_LABELS = embeddings(7, 4, 2), torch.tensor([0, 1, 3, 3, 2, 9, 1])


def almost_all(change: str) -> tuple[Tensor, ...]:
    a1, p, a2, n = (x.clone() for x in listing.get_all_pairs_indices(LABELS))
    if change == "missing positive":
        return a1[1:], p[1:], a2, n
    if change == "missing negative":
        return a1, p, a2[1:], n[1:]
    if change == "repeated positive":
        p[0] = p[1]
    elif change == "repeated negative":
        n[0] = n[1]
    elif change == "itself":
        p[0] = a1[0]
    elif change == "a positive as a negative":
        n[0] = 1
    elif change == "a negative as a positive":
        p[1], n[0] = n[0], 2
    elif change == "a negative among the positives":
        p[1] = 3
    elif change == "triplets":
        return listing.get_all_triplets_indices(LABELS)
    return a1, p, a2, n


MATRIX_LOSSES = ["SupConLoss", "MultiSimilarityLoss", "GeneralizedLiftedStructureLoss"]
CHANGES = ["missing positive", "missing negative", "repeated positive", "repeated negative", "itself", "triplets"]
CHANGES += ["a positive as a negative", "a negative as a positive", "a negative among the positives"]


@pytest.mark.parametrize("change", CHANGES)
def test_lists_of_other_pairs(change: str) -> None:
    case = Case(lambda m, z: m.NTXentLoss()(z, LABELS, almost_all(change)), (Z,))
    assert_same(measure(case, ours), measure(case, theirs), 1e-12)


@pytest.mark.parametrize("name", MATRIX_LOSSES)
@pytest.mark.parametrize("change", CHANGES)
def test_lists_of_other_pairs_and_matrices(change: str, name: str) -> None:
    """A matrix has a listed pair once, however often it is listed; the library takes no pair for both."""
    case = Case(lambda m, z: getattr(m, name)()(z, LABELS, almost_all(change)), (Z,))
    if change not in ("a positive as a negative", "a negative among the positives"):
        assert_same(measure(case, ours), measure(case, theirs), 1e-12)
        return
    for module in (theirs, ours):
        with pytest.raises(AssertionError, match="either be positive or negative"):
            measure(case, module)


def test_as_many_pairs_as_without_the_points_themselves() -> None:
    """Only one reference has the label of the anchor beside it; six other positive pairs are missing."""
    a1, p, a2, n = listing.get_all_pairs_indices(LABELS, REF_LABELS)
    kept = a1 != p
    pairs = a1[kept][6:], p[kept][6:], a2, n
    assert len(pairs[0]) == len(a1) - len(REF_LABELS)
    case = Case(lambda m, z, r: m.NTXentLoss()(z, LABELS, pairs, r, REF_LABELS), (Z, REFS))
    assert_same(measure(case, ours), measure(case, theirs), 1e-12)


MINERS = {
    "MultiSimilarityMiner": lambda: miners.MultiSimilarityMiner(),
    "TripletMarginMiner": lambda: miners.TripletMarginMiner(margin=0.5),
    "PairMarginMiner": lambda: miners.PairMarginMiner(pos_margin=0.9, neg_margin=0.1),
    "BatchHardMiner": lambda: miners.BatchHardMiner(),
    "nothing": lambda: lambda *_: (torch.zeros(0, dtype=torch.int64),) * 4,
}
OPTIONS = {
    "plain": lambda: {},
    "sum": lambda: {"reducer": reducers.SumReducer()},
    "non-zero": lambda: {"reducer": reducers.AvgNonZeroReducer()},
    "class weights": lambda: {"reducer": reducers.ClassWeightedReducer(torch.linspace(1, 2, 10, dtype=Z.dtype))},
    "regularizer": lambda: {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
    "p=1": lambda: {"distance": distances.CosineSimilarity(p=1)},
    "dot": lambda: {"distance": distances.DotProductSimilarity(normalize_embeddings=False), "temperature": 0.9},
}
OTHERS = {
    "LpDistance": lambda: {"distance": distances.LpDistance(), "temperature": 0.5},
    "power": lambda: {"distance": distances.CosineSimilarity(power=2)},
    "collect_stats": lambda: {"distance": distances.CosineSimilarity(collect_stats=True)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("miner", MINERS)
def test_pairs_of_a_miner(miner: str, options: str) -> None:
    pairs = MINERS[miner]()(Z, LABELS)
    assert (len(pairs[0]) > 0) == (miner != "nothing")
    case = Case(lambda m, z: m.NTXentLoss(**OPTIONS[options]())(z, LABELS, pairs), (Z,))
    assert_same(measure(case, ours), measure(case, theirs), 1e-12)


@pytest.mark.parametrize("distance", ["CosineSimilarity", "LpDistance"])
@pytest.mark.parametrize("name", MATRIX_LOSSES)
@pytest.mark.parametrize("miner", MINERS)
def test_matrices_of_the_pairs_of_a_miner(miner: str, name: str, distance: str) -> None:
    pairs = MINERS[miner]()(Z, LABELS)

    def run(module: Any, z: Tensor) -> Tensor:
        options = {} if distance == "CosineSimilarity" else {"power": 2}
        return getattr(module, name)(distance=getattr(distances, distance)(**options))(z, LABELS, pairs)

    case = Case(run, (Z,))
    assert_same(measure(case, ours), measure(case, theirs), 1e-12)


@pytest.mark.parametrize("options", OTHERS)
def test_other_distances_say_so(options: str, fallbacks: None) -> None:
    for pairs in (MINERS["TripletMarginMiner"]()(Z, LABELS), None):
        case = Case(lambda m, z, pairs=pairs: m.NTXentLoss(**OTHERS[options]())(z, LABELS, pairs), (Z,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            assert_same(measure(case, ours), measure(case, theirs), 1e-12)
    _peer._warned.clear()
    with pytest.warns(FallbackWarning, match="runs the library's own code"):
        ours.NTXentLoss(**OTHERS[options]())(Z, LABELS)


@pytest.mark.parametrize("name", MATRIX_LOSSES)
def test_pairs_without_labels(name: str) -> None:
    pairs = MINERS["MultiSimilarityMiner"]()(Z, LABELS)
    case = Case(lambda m, z: getattr(m, name)()(z, None, pairs), (Z,))
    assert_same(measure(case, ours), measure(case, theirs), 1e-12)


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
@pytest.mark.parametrize("against", ["itself", "references"])
def test_labels_and_the_list_they_stand_for(name: str, against: str, fallbacks: None) -> None:
    """Fused, recognised and listed: float64 in float64 on every way."""
    refs, ref_labels = (None, None) if against == "itself" else (REFS, REF_LABELS)
    pairs = listing.get_all_pairs_indices(LABELS, ref_labels)
    loss, its = getattr(ours, name)(), getattr(theirs, name)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        for labels, listed, of_refs in ((LABELS, None, ref_labels), (LABELS, pairs, ref_labels), (None, pairs, None)):
            found = loss(Z, labels, listed, refs, of_refs)
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, its(Z, LABELS, None, refs, ref_labels), rtol=1e-14, atol=0)


def test_a_list_takes_as_much_memory_as_it_is_long() -> None:
    """The library has a row of all listed negatives for each listed positive: 5.7 GiB here."""
    z = embeddings(128, 16, 1, torch.float32).requires_grad_()
    labels = torch.arange(128) % 16
    pairs = listing.get_all_triplets_indices(labels)
    n_pairs = len(pairs[0])
    assert n_pairs > 100_000
    with Largest() as largest:
        ours.NTXentLoss()(z, labels, pairs).backward()
    assert largest.numel <= max(n_pairs, 128 * 128)
    every = listing.get_all_pairs_indices(labels)
    few = [x[::7] for x in every]
    torch.testing.assert_close(ours.NTXentLoss()(z, labels, few), theirs.NTXentLoss()(z, labels, few))


def test_repeated_pairs_count_as_often_as_they_are_listed() -> None:
    pairs = (torch.tensor([0, 0, 3]), torch.tensor([1, 1, 4]), torch.tensor([0, 0, 0, 5]), torch.tensor([9, 9, 4, 3]))
    case = Case(lambda m, z: m.NTXentLoss(0.5)(z, LABELS, pairs), (Z,))
    assert_same(measure(case, ours), measure(case, theirs), 1e-13)


def test_a_listed_pair_far_apart_does_not_saturate() -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    pairs = tuple(torch.tensor(x) for x in ([0, 2], [1, 3], [0, 2], [2, 0]))
    assert float(ours.NTXentLoss(0.01)(z, None, pairs)) == pytest.approx(200, abs=1e-3)
    bad = z.index_fill(0, torch.tensor([2]), torch.nan)
    assert ours.NTXentLoss(0.01)(bad, None, pairs).isnan()
