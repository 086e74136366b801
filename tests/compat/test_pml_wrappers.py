# SPDX-License-Identifier: Apache-2.0
"""CrossBatchMemory and SelfSupervisedLoss of pycl.compat.pml: the queue, what is saved of it, what they refuse."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from parity import embeddings, peer
from torch import Tensor, nn

from pycl.compat import FallbackWarning, _peer
from pycl.compat.pml import losses as ours

LABELS = torch.tensor([0, 1, 0, 2, 1, 3, 2])
Z = embeddings(7, 4, 1, torch.float32)


@pytest.fixture
def theirs() -> Any:
    return peer("pytorch_metric_learning.losses")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_peer, "_warned", set())


def memory(module: Any, size: int = 10, loss: str = "NTXentLoss", **options: Any) -> Any:
    return module.CrossBatchMemory(getattr(module, loss)(), 4, size, **options)


def assert_same_queue(mine: Any, its: Any) -> None:
    assert (mine.queue_idx, mine.has_been_filled) == (its.queue_idx, its.has_been_filled)
    torch.testing.assert_close(mine.embedding_memory, its.embedding_memory, rtol=0, atol=0)
    torch.testing.assert_close(mine.label_memory, its.label_memory, rtol=0, atol=0)
    if hasattr(its, "curr_batch_idx"):
        assert torch.equal(mine.curr_batch_idx, its.curr_batch_idx)


@pytest.mark.parametrize("loss", ["NTXentLoss", "SupConLoss"])
def test_queue_of_the_library(loss: str, theirs: Any) -> None:
    mine, its = memory(ours, loss=loss), memory(theirs, loss=loss)
    assert_same_queue(mine, its)
    masks = [None, None, torch.arange(7) % 2 == 0, torch.zeros(7, dtype=torch.bool), None, torch.arange(7) > 0]
    for step, mask in enumerate(masks):
        n = 7 if mask is not None else 5 - step
        z, labels = Z[:n] + step, LABELS[:n]
        torch.testing.assert_close(
            mine(z, labels, enqueue_mask=mask), its(z, labels, enqueue_mask=mask), rtol=1e-5, atol=1e-6
        )
        assert_same_queue(mine, its)
    mine.reset_queue()
    its.reset_queue()
    assert_same_queue(mine, its)


def test_a_first_batch_of_nothing_fills_the_queue(theirs: Any) -> None:
    mine, its = memory(ours), memory(theirs)
    none = torch.zeros(7, dtype=torch.bool)
    torch.testing.assert_close(mine(Z, LABELS, enqueue_mask=none), its(Z, LABELS, enqueue_mask=none))
    assert its.has_been_filled
    assert_same_queue(mine, its)


def test_queue_takes_dtypes_of_the_batch(theirs: Any) -> None:
    for module in (ours, theirs):
        queue = memory(module)
        queue(Z.double(), LABELS.int())
        assert (queue.embedding_memory.dtype, queue.label_memory.dtype) == (torch.float64, torch.int32)


def test_two_batches_before_one_backward(theirs: Any) -> None:
    """The second batch writes into a full queue which the first batch's backward still needs."""

    def gradient(module: Any) -> Tensor:
        queue, z = memory(module, 7), Z.clone().requires_grad_()
        queue(Z.flip(0), LABELS)
        (queue(z, LABELS) + queue(2 * z.roll(1, 0), LABELS.roll(1))).backward()
        assert z.grad is not None
        return z.grad

    torch.testing.assert_close(gradient(ours), gradient(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["MultiSimilarityLoss", "NCALoss", "GeneralizedLiftedStructureLoss"])
@pytest.mark.parametrize("mined", [False, True])
def test_two_batches_of_other_losses_before_one_backward(loss: str, mined: bool, theirs: Any) -> None:
    from pytorch_metric_learning import distances, miners

    def gradient(module: Any) -> Tensor:
        inner = getattr(module, loss)(distance=distances.CosineSimilarity())
        queue, z = module.CrossBatchMemory(inner, 4, 7, miners.PairMarginMiner() if mined else None), Z.double()
        z.requires_grad_()
        queue(Z.double().flip(0), LABELS)
        (queue(z, LABELS) + queue(2 * z.roll(1, 0), LABELS.roll(1))).backward()
        assert z.grad is not None
        return z.grad

    torch.testing.assert_close(gradient(ours), gradient(theirs), rtol=1e-6, atol=1e-9)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("batches", [1, 3])
def test_training_goes_on_where_it_stopped(batches: int) -> None:
    model = nn.ModuleDict({"queue": memory(ours)})
    for step in range(batches):
        model["queue"](Z + step, LABELS)
    again = nn.ModuleDict({"queue": memory(ours)})
    again.load_state_dict(saved(model.state_dict()))
    assert again["queue"].queue_idx == 7 * batches % 10
    assert again["queue"].has_been_filled == (batches == 3)
    assert torch.equal(again["queue"](Z, LABELS), model["queue"](Z, LABELS))


def test_state_dicts_of_the_library_and_for_it(theirs: Any) -> None:
    mine, its = memory(ours), memory(theirs)
    mine(Z, LABELS)
    its(Z.flip(0), LABELS)
    assert list(mine.state_dict()) == list(its.state_dict()) == ["embedding_memory", "label_memory"]
    for source, target in ((mine, memory(theirs)), (its, memory(ours))):
        target.load_state_dict(saved(source.state_dict()))
        assert torch.equal(target.embedding_memory, source.embedding_memory)
        assert (target.queue_idx, target.has_been_filled) == (0, False)


def test_miners_and_lists_of_pairs(theirs: Any) -> None:
    from pytorch_metric_learning.miners import MultiSimilarityMiner, TripletMarginMiner

    more = torch.tensor([0, 1]), torch.tensor([2, 4]), torch.tensor([0, 1]), torch.tensor([1, 0])
    for miner, pairs in ((MultiSimilarityMiner(), None), (TripletMarginMiner(), None), (None, more)):
        mine, its = memory(ours, miner=miner), memory(theirs, miner=miner)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            for step in range(3):
                z = Z + 0.2 * step * Z.flip(0)
                torch.testing.assert_close(mine(z, LABELS, pairs), its(z, LABELS, pairs), rtol=1e-5, atol=1e-6)
                assert_same_queue(mine, its)


def test_own_lists_of_pairs(theirs: Any) -> None:
    def queue(module: Any) -> Any:
        base = module.CrossBatchMemory

        def half(self: Any, *args: Any) -> Any:
            a1, p, a2, n = base.create_indices_tuple(self, *args)
            return a1, p, a2[::2], n[::2]

        return type("CrossBatchMemory", (base,), {"create_indices_tuple": half})(module.NTXentLoss(), 4, 10)

    torch.testing.assert_close(queue(ours)(Z, LABELS), queue(theirs)(Z, LABELS), rtol=1e-5, atol=1e-6)
    assert not torch.equal(queue(ours)(Z, LABELS), memory(ours)(Z, LABELS))


def test_pairs_are_listed_for_options_that_are_not_fused(theirs: Any) -> None:
    from pytorch_metric_learning.distances import LpDistance

    def total(module: Any) -> Tensor:
        queue = module.CrossBatchMemory(module.NTXentLoss(distance=LpDistance()), 4, 10)
        return torch.stack([queue(Z + 0.2 * step * Z.flip(0), LABELS.roll(step)) for step in range(3)])

    with pytest.warns(FallbackWarning, match="LpDistance"):
        torch.testing.assert_close(total(ours), total(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss"])
def test_other_losses_of_the_library(name: str, theirs: Any) -> None:
    mine, its = memory(ours, loss=name), memory(theirs, loss=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        for step in range(3):
            torch.testing.assert_close(mine(Z + step, LABELS), its(Z + step, LABELS))
            assert_same_queue(mine, its)
        for symmetric in (True, False):
            both = [m.SelfSupervisedLoss(getattr(m, name)(), symmetric)(Z, Z.flip(0) + 0.1) for m in (ours, theirs)]
            torch.testing.assert_close(*both)


def test_errors(theirs: Any) -> None:
    mask = torch.ones(7, dtype=torch.bool)
    for module in (theirs, ours):
        with pytest.raises(AssertionError):
            memory(module, 6)(Z, LABELS)
        with pytest.raises(AssertionError):
            memory(module)(Z, LABELS, enqueue_mask=mask[:3])
        with pytest.raises(ValueError, match="indices_tuple"):
            memory(module)(Z, LABELS, (LABELS, LABELS, LABELS, LABELS), mask)
        for wrapper in (module.SelfSupervisedLoss, lambda inner, m=module: m.CrossBatchMemory(inner, 4)):
            with pytest.raises(Exception, match="VICRegLoss"):
                wrapper(module.VICRegLoss())
        assert isinstance(module.SelfSupervisedLoss(ours.NTXentLoss()), theirs.SelfSupervisedLoss)


def test_supported_losses_are_the_librarys(theirs: Any) -> None:
    for name in ("SelfSupervisedLoss", "CrossBatchMemory"):
        assert getattr(ours, name).supported_losses() == getattr(theirs, name).supported_losses()


def test_no_list_of_pairs_is_kept() -> None:
    n, d, size = 256, 8, 4096
    saved_tensors: list[int] = []
    queue = ours.CrossBatchMemory(ours.SupConLoss(), d, size)
    z, labels = embeddings(n, d, 1, torch.float32).requires_grad_(), torch.arange(n) % 10
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved_tensors.append(t.numel()) or t, lambda t: t):
        for _ in range(size // n):
            queue(z, labels)
    assert queue.has_been_filled
    assert max(saved_tensors) <= size * d


@pytest.mark.parametrize("loss", ["NTXentLoss", "SupConLoss"])
def test_half_queues_are_nearer_to_float64_than_the_library_s(loss: str, theirs: Any) -> None:
    queues = [memory(m, 40, loss) for m in (ours, theirs, ours)]
    worst = [0.0, 0.0]
    for step in range(4):
        z = (Z + 0.3 * step * Z.flip(0)).half()
        *found, truth = (q(x, LABELS).double() for q, x in zip(queues, (z, z, z.double()), strict=True))
        worst = [max(w, float((f - truth).abs() / truth)) for w, f in zip(worst, found, strict=True)]
    assert worst[0] < 1e-3
    assert worst[0] <= worst[1]
