# SPDX-License-Identifier: Apache-2.0
"""Buffers of large results: used again once nothing refers to them, never before, and not without bound."""

from __future__ import annotations

import gc
import mmap
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pycl.functional as F
from pycl.backends import buffers
from pycl.backends.registry import why_not

MiB = 1 << 20
anonymous = pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="no anonymous memory maps here")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers.results, "idle", [])


def of(mib: int) -> Tensor:
    return buffers.empty((mib, MiB // 4), torch.float32)


@anonymous
def test_what_is_gone_is_used_again() -> None:
    first = of(40)
    assert (first.shape, first.dtype, first.is_contiguous()) == ((40, MiB // 4), torch.float32, True)
    at = first.data_ptr()
    del first
    assert of(40).data_ptr() == at
    assert buffers.empty((10, MiB), torch.int32).data_ptr() == at  # the size counts, not the shape


@anonymous
@pytest.mark.parametrize("alias", [lambda t: t[1:, ::2], lambda t: t.numpy(), lambda t: t.untyped_storage()])
def test_what_is_referred_to_is_not(alias: Callable[[Tensor], Any]) -> None:
    first = of(40)
    first.fill_(3)
    at, other = first.data_ptr(), alias(first)
    del first
    second = of(40)
    second.zero_()
    assert second.data_ptr() != at
    values = other if not isinstance(other, torch.UntypedStorage) else torch.tensor(other[:4].tolist())
    assert (values != 0).any()
    del other, values
    gc.collect()
    assert of(40).data_ptr() == at


@anonymous
def test_idle_buffers_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MAX_IDLE_BYTES", 100 * MiB)
    results = [of(40), of(41), of(42)]
    newest = [r.data_ptr() for r in results[1:]]
    for _ in range(3):
        results.pop(0)
    assert [len(b) // MiB for b in buffers.results.idle] == [41, 42]  # the oldest went
    large = of(120)
    del large
    assert [len(b) // MiB for b in buffers.results.idle] == [41, 42]  # what is too large stays with nobody
    assert [of(41).data_ptr(), of(42).data_ptr()] == newest


def test_small_results_are_torchs() -> None:
    result = buffers.empty((buffers.MIN_BYTES - 1,), torch.uint8)
    del result
    assert not buffers.results.idle


@anonymous
def test_threads_never_share() -> None:
    shared: list[int] = []

    def work(value: int) -> None:
        for _ in range(30):
            mine = of(33)
            mine[:, ::1024] = value
            if not (mine[:, ::1024] == value).all():
                shared.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not shared
    assert len(buffers.results.idle) <= 2 * 4  # a new result and the one before it


@anonymous
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_writes_to_memory_of_its_own() -> None:
    result = of(33)
    result.zero_()
    if (child := os.fork()) == 0:
        result.numpy()[:] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert not result.any()


@anonymous
@pytest.mark.skipif(why_not("cpu", "cpu") is not None, reason="the CPU backend is not built")
def test_codes_come_in_them() -> None:
    scores = torch.randn(2100, 4096)
    first = F.sinkhorn(scores, backend="cpu")
    at, right = first.data_ptr(), first.clone()
    second = F.sinkhorn(scores, backend="cpu")
    assert second.data_ptr() != at
    del first
    assert F.sinkhorn(scores, backend="cpu").data_ptr() == at
    assert torch.equal(second, right)
