# SPDX-License-Identifier: Apache-2.0
"""The queue of earlier features: what is written where, what a state_dict holds, and queues of several ranks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.spawn import on_ranks
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

import pycl
import pycl.functional as F


def queue_of(size: int = 6, dim: int = 3, **options: Any) -> pycl.FeatureQueue:
    return pycl.FeatureQueue(size, dim, normalize=False, **options)


def rows(start: int, stop: int, dim: int = 3) -> Tensor:
    return torch.arange(float(start), stop)[:, None].expand(-1, dim)


def test_first_in_first_out() -> None:
    queue = queue_of()
    assert len(queue.written()[0]) == 0
    for start, stop in ((0, 4), (4, 8), (8, 9)):
        queue.write(rows(start, stop), torch.arange(start, stop))
    assert queue.pointer == 9
    assert queue.ids.tolist() == [6, 7, 8, 3, 4, 5]
    assert_close(queue.features[:, 0], queue.ids.float())
    assert torch.equal(queue.written()[0], queue.features)


def test_a_batch_larger_than_the_queue_leaves_its_last_rows() -> None:
    queue = queue_of()
    queue.write(rows(0, 2), torch.arange(2))
    queue.write(rows(2, 15), torch.arange(2, 15))
    one_by_one = queue_of()
    for k in range(15):
        one_by_one.write(rows(k, k + 1), torch.tensor([k]))
    assert queue.ids.tolist() == one_by_one.ids.tolist()
    assert torch.equal(queue.features, one_by_one.features)
    assert queue.pointer == one_by_one.pointer == 15


def test_rows_are_random_unit_vectors_until_they_are_written() -> None:
    queue = pycl.FeatureQueue(32, 8)
    assert_close(queue.features.norm(dim=1), torch.ones(32))
    queue.write(torch.full((3, 8), 5.0))
    assert_close(queue.features.norm(dim=1), torch.ones(32))
    assert (queue.ids == -1).all()
    features, ids = queue.written()
    assert_close(features, torch.full((3, 8), 8**-0.5))
    assert ids.tolist() == [-1] * 3
    queue.reset_parameters()
    assert queue.pointer == 0
    assert len(queue.written()[0]) == 0


def test_state_dict_and_copies() -> None:
    queue = queue_of(dtype=torch.float64)
    queue.write(rows(0, 4).double(), torch.arange(4))
    loaded = queue_of(dtype=torch.float64)
    loaded.load_state_dict(queue.state_dict())
    for twin in (loaded, copy.deepcopy(queue), pickle.loads(pickle.dumps(queue))):
        twin.write(rows(4, 8).double(), torch.arange(4, 8))
        assert twin.ids.tolist() == [6, 7, 2, 3, 4, 5]
        assert twin.features.dtype == torch.float64
    assert queue.ids.tolist() == [0, 1, 2, 3, -1, -1]


def test_writing_between_a_loss_and_its_backward() -> None:
    queue = pycl.FeatureQueue(16, 4)
    query, key = torch.randn(2, 5, 4).unbind()
    query.requires_grad_()
    before = queue()
    loss = F.info_nce(query, key, queue())
    queue.write(key)
    (gradient,) = torch.autograd.grad(loss, query)
    (expected,) = torch.autograd.grad(F.info_nce(query, key, before), query)
    assert torch.equal(gradient, expected)
    assert not torch.equal(before, queue())


def test_what_is_written_has_no_history() -> None:
    queue = pycl.FeatureQueue(16, 4)
    queue.write(torch.randn(5, 4, requires_grad=True) * 2)
    assert not queue().requires_grad
    queue.write(torch.randn(3, 4, dtype=torch.float16))
    assert queue.features.dtype == torch.float32


def test_a_compiled_step_needs_no_graph_for_each_write() -> None:
    torch._dynamo.reset()
    queue, plain = (pycl.FeatureQueue(12, 4) for _ in range(2))
    plain.load_state_dict(queue.state_dict())
    graphs = CompileCounter()

    def step(queue: pycl.FeatureQueue, x: Tensor) -> Tensor:
        loss = F.info_nce(x, x, queue())
        queue.write(x)
        return loss

    compiled = torch.compile(step, backend=graphs, fullgraph=True)
    for _ in range(6):
        x = torch.randn(5, 4)
        assert_close(compiled(queue, x), step(plain, x))
        assert_close(queue.features, plain.features)
    assert graphs.frame_count == 1


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.queue = pycl.FeatureQueue(4, 3)

    def forward(self, z: Tensor) -> Tensor:
        self.queue.write(z)
        return z.exp().sum()


def test_a_checkpoint_that_writes_again_is_refused() -> None:
    z = torch.randn(2, 3, requires_grad=True)
    value = torch.utils.checkpoint.checkpoint(Checkpointed(), z, use_reentrant=False)
    with pytest.raises(RuntimeError, match="called by a backward pass"):
        value.backward()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pycl.FeatureQueue(0, 3), ValueError, "size must be at least 1, got 0"),
        (lambda: pycl.FeatureQueue(4, 2.0), TypeError, "dim must be an integer"),
        (lambda: pycl.FeatureQueue(4, 3, group=object()), TypeError, "group"),
        (lambda: queue_of().write(torch.randn(2, 4)), ValueError, "features must have 3 features"),
        (lambda: queue_of().write(torch.randn(0, 3)), ValueError, "features must have shape"),
        (lambda: queue_of().write(torch.ones(2, 3).long()), TypeError, "features must be floating point"),
        (lambda: queue_of().write(torch.randn(2, 3), torch.arange(3)), ValueError, r"ids must have shape \[2\]"),
        (lambda: queue_of().write(torch.randn(2, 3), torch.randn(2)), TypeError, "ids must be an integer"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def ranks_write(rank: int, world: int) -> tuple[Tensor, Tensor, int]:
    queue = queue_of(7, 3, group=dist.group.WORLD)
    for step in range(2):
        n = 2 + rank
        start = 10 * step + 100 * rank
        queue.write(rows(start, start + n), torch.arange(start, start + n))
    return queue.features, queue.ids, int(queue.pointer)


def test_all_ranks_hold_one_queue() -> None:
    expected = queue_of(7, 3)
    for step in range(2):
        for rank in range(2):
            start = 10 * step + 100 * rank
            expected.write(rows(start, start + 2 + rank), torch.arange(start, start + 2 + rank))
    for features, ids, pointer in on_ranks(2, ranks_write):
        assert torch.equal(ids, expected.ids)
        assert torch.equal(features, expected.features)
        assert pointer == expected.pointer


def of_two_widths(rank: int, world: int) -> str:
    queue = pycl.FeatureQueue(8, 3 + rank, group=dist.group.WORLD)
    with pytest.raises(ValueError, match="dim must be the same on all ranks") as caught:
        queue.write(torch.randn(2, 3 + rank))
    return str(caught.value)


def test_ranks_must_agree() -> None:
    assert (
        on_ranks(2, of_two_widths)
        == ["dim must be the same on all ranks of the group, got 3 on rank 0, 4 on rank 1"] * 2
    )
