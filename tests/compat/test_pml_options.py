# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.pml: which options are fused and which run the library's code, errors, extremes, memory."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import Case, assert_same, embeddings, measure, peer
from torch import Tensor

from pycl.compat import FallbackWarning, _peer
from pycl.compat.pml import losses as ours

theirs = peer("pytorch_metric_learning.losses") if _peer.find_peer("pytorch_metric_learning") else None
pytestmark = pytest.mark.skipif(theirs is None, reason="pytorch_metric_learning is not installed")

if theirs is not None:
    from pytorch_metric_learning import distances, reducers, regularizers
    from pytorch_metric_learning.utils import loss_and_miner_utils as listing

PAIR_LOSSES = ["NTXentLoss", "SupConLoss"]
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
SIMCLR = torch.arange(5).repeat(2)
Z = embeddings(10, 4, 1)
REFS, REF_LABELS = embeddings(7, 4, 2), torch.tensor([0, 1, 3, 3, 2, 9, 1])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_peer, "_warned", set())
    monkeypatch.delenv("PYCL_STRICT", raising=False)


def weights(n: int = 10) -> Tensor:
    return torch.linspace(1, 2, n, dtype=Z.dtype)


def calls(name: str, options: Callable[[], dict[str, Any]]) -> dict[str, Case]:
    """A batch of classes, one of pairs, and one against references."""
    return {
        "classes": Case(lambda m, z: getattr(m, name)(**options())(z, LABELS), (Z,), 1e-10),
        "pairs": Case(lambda m, z: getattr(m, name)(**options())(z, SIMCLR), (Z,), 1e-10),
        "refs": Case(lambda m, z, r: getattr(m, name)(**options())(z, LABELS, None, r, REF_LABELS), (Z, REFS), 1e-10),
    }


BOTH = {
    "cosine": lambda: {"distance": distances.CosineSimilarity()},
    "p=1": lambda: {"distance": distances.CosineSimilarity(p=1)},
    "dot": lambda: {"distance": distances.DotProductSimilarity(normalize_embeddings=False)},
    "dot of unit vectors": lambda: {"distance": distances.DotProductSimilarity(p=3)},
    "mean": lambda: {"reducer": reducers.MeanReducer()},
    "sum": lambda: {"reducer": reducers.SumReducer()},
    "class weights": lambda: {"reducer": reducers.ClassWeightedReducer(weights())},
    "by anchor": lambda: {"reducer": reducers.PerAnchorReducer()},
    "sum by anchor": lambda: {"reducer": reducers.PerAnchorReducer(reducers.SumReducer())},
    "regularizer": lambda: {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
    "several reducers": lambda: {"reducer": reducers.MultipleReducers({"loss": reducers.SumReducer()})},
    "default of several": lambda: {"reducer": reducers.MultipleReducers({}, reducers.SumReducer())},
}
OF_TERMS = {
    "threshold": lambda: {"reducer": reducers.ThresholdReducer(low=1.0, high=9.0)},
    "non-zero": lambda: {"reducer": reducers.AvgNonZeroReducer()},
}
FUSED = {
    f"{name}-{option}-{call}": case
    for name in PAIR_LOSSES
    for option, options in (BOTH if name == "NTXentLoss" else BOTH | OF_TERMS).items()
    for call, case in calls(name, options).items()
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        assert_same(measure(FUSED[name], ours), measure(FUSED[name], theirs), FUSED[name].tolerance)


class OwnMean(reducers.MeanReducer if theirs else object):  # type: ignore[misc]  # a base known when it runs
    def element_reduction(self, losses: Tensor, *_: Any) -> Tensor:
        return losses.square().mean()


NOT_FUSED = {
    "power": lambda: {"distance": distances.CosineSimilarity(power=2)},
    "LpDistance": lambda: {"distance": distances.LpDistance()},
    "a temperature of several entries": lambda: {"temperature": torch.ones(10, 1, dtype=Z.dtype)},
    "collect_stats": lambda: {"distance": distances.CosineSimilarity(collect_stats=True)},
}
NOT_FUSED_PAIRS = {
    "ThresholdReducer": OF_TERMS["threshold"],
    "AvgNonZeroReducer": OF_TERMS["non-zero"],
    "OwnMean": lambda: {"reducer": OwnMean()},
    "PerAnchorReducer": lambda: {"reducer": reducers.PerAnchorReducer(aggregation_func=lambda x, n: x.sum(1))},
    "collect_stats": lambda: {"reducer": reducers.MeanReducer(collect_stats=True)},
}
FALLBACKS = [("SupConLoss", why, options) for why, options in NOT_FUSED.items()]
FALLBACKS += [
    ("NTXentLoss", why, options) for why, options in (NOT_FUSED | NOT_FUSED_PAIRS).items() if "several" not in why
]


@pytest.mark.parametrize(("name", "why", "options"), FALLBACKS, ids=lambda x: x if isinstance(x, str) else "")
def test_falls_back(name: str, why: str, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = calls(name, options)["classes"]
    expected = measure(case, theirs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_same(measure(case, ours), expected, 1e-12)
        measure(case, ours)
    assert any(re.search(f"{name} runs the library's own code.*{why}", str(w.message)) for w in caught)
    assert len([w for w in caught if w.category is FallbackWarning]) == 1
    monkeypatch.setenv("PYCL_STRICT", "1")
    with pytest.raises(RuntimeError, match="PYCL_STRICT"):
        measure(case, ours)


def test_more_references_than_anchors_by_anchor() -> None:
    loss = ours.NTXentLoss(reducer=reducers.PerAnchorReducer())
    with pytest.warns(FallbackWarning), pytest.raises(IndexError):  # as the library's own
        loss(REFS, REF_LABELS, ref_emb=Z, ref_labels=LABELS)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_subclass_with_its_own_formula(name: str) -> None:
    def of(module: Any) -> Any:
        base = getattr(module, name)
        return type("Own", (base,), {"_compute_loss": lambda self, *args: self.zero_losses()})()

    with pytest.warns(FallbackWarning, match="Own.*formula of its own"):
        assert float(of(ours)(Z, LABELS)) == float(of(theirs)(Z, LABELS)) == 0


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_lists_of_all_pairs_are_recognised(name: str) -> None:
    def run(module: Any, z: Tensor, refs: Tensor, kind: str) -> Tensor:
        loss = getattr(module, name)()
        if kind == "batch":
            return loss(z, LABELS, listing.get_all_pairs_indices(LABELS))
        if kind == "batch and itself":
            return loss(z, LABELS, listing.get_all_pairs_indices(LABELS, LABELS.clone()))
        if kind == "references":
            return loss(z, LABELS, listing.get_all_pairs_indices(LABELS, REF_LABELS), refs, REF_LABELS)
        labels = torch.cat([LABELS, REF_LABELS])
        pairs = listing.get_all_pairs_indices(LABELS, labels)
        pairs = listing.remove_self_comparisons(pairs, torch.arange(len(LABELS)), len(labels))
        return loss(z, LABELS, pairs, torch.cat([z, refs]), labels)

    for kind in ("batch", "batch and itself", "references", "both"):
        case = Case(lambda m, z, r, kind=kind: run(m, z, r, kind), (Z, REFS))
        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            assert_same(measure(case, ours), measure(case, theirs), 1e-10)


def test_references_without_labels() -> None:
    case = Case(lambda m, z: m.NTXentLoss()(z[:7], LABELS[:7], ref_emb=z), (Z,))
    with pytest.warns(FallbackWarning, match="without ref_labels"):
        assert_same(measure(case, ours), measure(case, theirs), 1e-12)


WRONG = {
    "too few labels": (Z, LABELS[:3]),
    "labels of two dimensions": (Z, LABELS[:, None]),
    "neither labels nor pairs": (Z,),
    "embeddings of three dimensions": (Z[:, None], LABELS),
    "too few labels of references": (Z, LABELS, None, REFS, LABELS),
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("wrong", WRONG)
def test_errors(name: str, wrong: str) -> None:
    for module in (theirs, ours):
        with pytest.raises(ValueError, match=r"labels|embeddings"):
            getattr(module, name)()(*WRONG[wrong])


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_empty_batch(name: str) -> None:
    z = Z[:0].clone().requires_grad_()
    for module in (theirs, ours):
        loss = getattr(module, name)()(z, LABELS[:0])
        loss.backward()
        assert float(loss.detach()) == 0


def test_hard_positives_do_not_saturate() -> None:
    """At a temperature of 0.01 a positive opposite to its anchor costs 200; the library stops at 87."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert float(theirs.NTXentLoss(0.01)(z, labels)) == pytest.approx(87.3, abs=0.1)
    assert float(ours.NTXentLoss(0.01)(z, labels)) == pytest.approx(200, abs=1e-3)


def test_terms_the_library_rounds_to_zero_leave_the_default_mean() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-0.8, 0.6], [-0.6, -0.8]])
    case = Case(lambda m, x: m.SupConLoss(0.03)(x, torch.tensor([0, 0, 1, 1, 2])), (z,))
    expected = measure(case, theirs)
    assert expected["loss"] > 1e-6  # that of one anchor of the two with a positive and a negative
    assert_same(measure(case, ours), expected, 1e-3)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_version_2_0_has_no_check_of_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = getattr(theirs, name)()(Z, LABELS)
    monkeypatch.delattr(theirs.GenericPairLoss, "_assert_either_pos_or_neg")
    torch.testing.assert_close(getattr(ours, name)()(Z, LABELS), expected)
