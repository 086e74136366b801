# SPDX-License-Identifier: Apache-2.0
"""pycl.compat.pml against pytorch-metric-learning: recorded numbers, with and without the library, and the live one."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import Case, assert_same, embeddings, golden, measure, peer
from torch import Tensor

import pycl.compat
from pycl.compat import FallbackWarning
from pycl.compat._explain import DROP_INS
from pycl.compat.pml import losses as ours

PEER, MODULE = "pytorch-metric-learning", "pytorch_metric_learning.losses"
REPLACED = ["NTXentLoss", "SupConLoss", "CrossBatchMemory", "SelfSupervisedLoss"]  # also without the library
FUSED = next(d.fused for d in DROP_INS if d.library == MODULE)
HALF = 4e-2  # of the library in bfloat16, whose every step is rounded

LABELS = {
    "simclr": [0, 1, 2, 3, 4, 0, 1, 2, 3, 4],
    "single": [0, 0, 1, 2, 3, 4, 4],  # anchors without positives
    "several": [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, -5],
    "distinct": [3, 1, 2],
    "one_class": [4, 4, 4],
    "two": [1, 1],
}


def together(name: str, **options: Any) -> Callable[..., Tensor]:
    """A batch against itself."""
    return lambda module, z, labels: getattr(module, name)(**options)(z, labels)


def apart(name: str, **options: Any) -> Callable[..., Tensor]:
    """A batch against references with labels of their own."""
    return lambda module, z, refs, labels, ref_labels: getattr(module, name)(**options)(
        z, labels, ref_emb=refs, ref_labels=ref_labels
    )


def learned(name: str) -> Callable[..., Tensor]:
    def run(module: Any, z: Tensor, temperature: Tensor, labels: Tensor) -> Tensor:
        loss = getattr(module, name)()
        loss.temperature = temperature
        return loss(z, labels)

    return run


def self_supervised(name: str, symmetric: bool) -> Callable[..., Tensor]:
    return lambda module, z, refs: module.SelfSupervisedLoss(getattr(module, name)(), symmetric)(z, refs)


def remembered(name: str, memory: int, sizes: list[int], masked: bool = False) -> Callable[..., Tensor]:
    """The sum of the losses of some batches through one queue."""

    def run(module: Any, z: Tensor, labels: Tensor) -> Tensor:
        loss = module.CrossBatchMemory(getattr(module, name)(), z.shape[1], memory)
        total = z.new_zeros(())
        for step, n in enumerate(sizes):
            batch = z[:n] + 0.3 * step * z.flip(0)[:n]
            mask = torch.arange(n) % 3 != step % 2 if masked else None
            total = total + loss(batch, labels.roll(step)[:n], enqueue_mask=mask)
        return total

    return run


def batch(labels: str, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    ids = torch.tensor(LABELS[labels])
    return embeddings(len(ids), d, 1, dtype), ids


def _cases() -> dict[str, Case]:
    cases = {}
    queue = batch("several", 5)
    refs = embeddings(6, 5, 2, torch.float32), torch.tensor([0, 2, 2, 9, 0, 1])
    for name in REPLACED[:2]:
        short = name.lower()[:6]
        cases |= {f"{short}-{labels}": Case(together(name), batch(labels, 6)) for labels in LABELS}
        z, ids = batch("several", 5, torch.float64)
        cases |= {
            f"{short}-float64": Case(together(name), (z, ids), 1e-10),
            f"{short}-bfloat16": Case(together(name, temperature=0.5), (z.bfloat16(), ids), HALF),
            f"{short}-temperature": Case(together(name, temperature=0.5), (z, ids), 1e-10),
            f"{short}-learned": Case(learned(name), (z, torch.tensor(0.3, dtype=z.dtype), ids), 1e-10),
            f"{short}-float-labels": Case(
                lambda m, z, ids, name=name: getattr(m, name)()(z, ids / 4), (z, ids), tolerance=1e-10
            ),
            f"{short}-refs": Case(apart(name), (queue[0], refs[0], queue[1], refs[1])),
            f"{short}-one-ref": Case(apart(name), (queue[0], refs[0][:1], queue[1], refs[1][:1])),
            f"{short}-one-and-one": Case(apart(name), (refs[0][:1], queue[0][:2], refs[1][:1], torch.tensor([0, 1]))),
            f"{short}-refs-one-positive": Case(
                apart(name), (queue[0], refs[0][:4], queue[1], torch.tensor([0, 1, 2, 3]))
            ),
            f"{short}-refs-no-negative": Case(apart(name), (queue[0][:3], refs[0], queue[1][:3], 0 * refs[1])),
            f"{short}-refs-some-without-negative": Case(
                apart(name), (queue[0][:5], refs[0][:3], queue[1][:5], torch.tensor([0, 0, 0]))
            ),
            # the labels are the references', too: reference i is taken for anchor i
            f"{short}-refs-same-labels": Case(
                lambda m, z, r, ids, name=name: getattr(m, name)()(z, ids, ref_emb=r),
                (queue[0][:6], refs[0], queue[1][:6]),
            ),
            f"{short}-symmetric": Case(self_supervised(name, True), (queue[0][:6], refs[0])),
            f"{short}-one-way": Case(self_supervised(name, False), (queue[0][:6], refs[0])),
            f"{short}-queue": Case(remembered(name, 12, [5, 4, 6, 5, 11]), queue),
            f"{short}-queue-full": Case(remembered(name, 7, [7, 7, 3, 7]), queue),
            f"{short}-queue-of-ones": Case(remembered(name, 4, [3, 1, 2, 1]), queue),
            f"{short}-queue-masked": Case(remembered(name, 12, [5, 8, 11, 8], masked=True), queue),
        }
    return cases


CASES = _cases()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The drop-ins as they are where the library is not installed."""
    monkeypatch.setattr(pycl.compat, "pml", pycl.compat.pml)
    for name in [name for name in sys.modules if name.startswith("pycl.compat.pml")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    return importlib.import_module("pycl.compat.pml").losses


def found(case: Case, module: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        return measure(case, module)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert_same(found(CASES[name], ours), golden(PEER)[name], CASES[name].tolerance)


@pytest.mark.parametrize("name", CASES)
def test_golden_without_the_library(name: str, alone: Any) -> None:
    assert alone.NTXentLoss is not ours.NTXentLoss
    assert_same(found(CASES[name], alone), golden(PEER)[name], CASES[name].tolerance)


@pytest.mark.parametrize("name", CASES)
def test_live(name: str) -> None:
    assert_same(found(CASES[name], ours), measure(CASES[name], peer(MODULE)), CASES[name].tolerance)


@pytest.mark.parametrize("name", FUSED)
def test_signatures_and_classes(name: str) -> None:
    theirs = getattr(peer(MODULE), name)
    mine = getattr(ours, name)
    assert mine is not theirs
    assert issubclass(mine, theirs)
    assert mine.__name__ == name
    for method in ("__init__", "forward"):
        of_mine = inspect.signature(getattr(mine, method)).parameters
        of_theirs = inspect.signature(getattr(theirs, method)).parameters
        assert [(p.name, p.kind, p.default) for p in of_mine.values()] == [
            (p.name, p.kind, p.default) for p in of_theirs.values()
        ]


def test_every_other_name_is_the_librarys() -> None:
    theirs = peer(MODULE)
    names = [name for name in vars(theirs) if not name.startswith("_")]
    assert "TripletMarginLoss" in names
    for name in names:
        assert (getattr(ours, name) is getattr(theirs, name)) == (name not in FUSED)
    assert {"TripletMarginLoss", *FUSED} <= set(ours.__all__)
    with pytest.raises(AttributeError, match="NoSuchLoss"):
        _ = ours.NoSuchLoss


def test_attributes() -> None:
    theirs = peer(MODULE)
    for name in REPLACED[:2]:
        mine, its = getattr(ours, name)(temperature=0.3), getattr(theirs, name)(temperature=0.3)
        assert mine.state_dict() == its.state_dict() == {}
        assert mine.__dict__.keys() == its.__dict__.keys()
        assert mine.temperature == 0.3
        assert repr(mine) == repr(its)


@pytest.mark.parametrize("name", REPLACED[:2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_result_has_the_dtype_of_the_embeddings(name: str, dtype: torch.dtype) -> None:
    z, labels = batch("several", 5, dtype)
    assert getattr(ours, name)()(z, labels).dtype == getattr(peer(MODULE), name)()(z, labels).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert getattr(ours, name)()(z.float(), labels).dtype == torch.bfloat16


@pytest.mark.parametrize("name", REPLACED[:2])
def test_half_embeddings_are_summed_in_float32(name: str) -> None:
    z, labels = batch("several", 5, torch.float16)
    loss = getattr(ours, name)()
    expected = loss(z.float(), labels)
    assert float(loss(z, labels)) == float(expected.half())


def test_without_the_library(alone: Any) -> None:
    z, labels = batch("several", 5)
    loss = alone.NTXentLoss()
    with pytest.raises(AttributeError, match="pip install pytorch-metric-learning"):
        _ = alone.TripletMarginLoss
    for name in set(FUSED) - set(REPLACED):
        with pytest.raises(AttributeError, match=f"{name} needs.*pip install pytorch-metric-learning"):
            getattr(alone, name)
    for options in ({"distance": object()}, {"reducer": object()}, {"collect_stats": True}):
        with pytest.raises(RuntimeError, match="pip install pytorch-metric-learning"):
            alone.SupConLoss(**options)
    with pytest.raises(TypeError):
        alone.SupConLoss(no_such_option=1)
    with pytest.raises(RuntimeError, match=r"miner.*pip install"):
        loss(z, labels, (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([4])))
    with pytest.raises(RuntimeError, match="pip install"):
        alone.CrossBatchMemory(loss, 5, miner=object())
    with pytest.raises(RuntimeError, match="pip install"):
        alone.CrossBatchMemory(loss, 5)(z, labels, (labels, labels, labels, labels))
    for wrapper in (alone.SelfSupervisedLoss, lambda inner: alone.CrossBatchMemory(inner, 5)):
        with pytest.raises(Exception, match="MSELoss"):
            wrapper(torch.nn.MSELoss())
    for wrong in ((z, labels[1:]), (z, labels[:, None]), (z,), (z[0], labels)):
        with pytest.raises(ValueError, match=r"label|embeddings"):
            loss(*wrong)
