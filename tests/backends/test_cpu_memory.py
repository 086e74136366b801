# SPDX-License-Identifier: Apache-2.0
"""Memory of large results: used again once nothing refers to them, never before, and not without bound."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pycl.functional as F
from pycl.backends.registry import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends import cpu

MiB = 1 << 20


def of(mib: int) -> Tensor:
    return cpu._empty((mib, MiB // 4), torch.float32)


def test_what_is_gone_is_used_again() -> None:
    first = of(40)
    assert (first.shape, first.dtype, first.is_contiguous()) == ((40, MiB // 4), torch.float32, True)
    at = first.data_ptr()
    assert at % 64 == 0
    del first
    assert of(40).data_ptr() == at
    assert cpu._empty((10, MiB), torch.int32).data_ptr() == at  # the size counts, not the shape
    assert cpu._empty_like(torch.empty(MiB, 10).T).is_contiguous()


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


PROGRAM = """
import torch, pycl.functional as F
from pycl.backends import cpu
MiB = 1 << 20

def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 // MiB

def filled(mib):
    return cpu._empty((mib, MiB), torch.uint8).fill_(1)

filled(1)
before = resident()
results = [filled(100 + k) for k in range(4)]
assert resident() - before > 400
del results
print(resident() - before)
for _ in range(10):  # calls that need none of it
    F.clip(torch.randn(9, 4), torch.randn(9, 4), 1.0)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc that tells what a process holds")
def test_what_waits_has_a_bound_and_an_age() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    held, later = map(int, run.stdout.split())
    assert 150 < held <= 256 + 20
    assert later <= 20


def test_small_results_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = cpu._C.Memory
    monkeypatch.setattr(cpu._C, "Memory", lambda size: (asked.append(size), plain(size))[1])
    for size in (cpu.CACHED_BYTES - 1, cpu.CACHED_BYTES):
        cpu._empty((size,), torch.uint8)
        cpu._empty_like(torch.empty(size, dtype=torch.uint8))
    assert asked == [cpu.CACHED_BYTES] * 2


def test_memory_has_a_size() -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match="size must be at least 1"):
            cpu._C.Memory(size)
    with pytest.raises(MemoryError):
        cpu._C.Memory(1 << 60)


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_writes_to_memory_of_its_own() -> None:
    result = of(33)
    result.zero_()
    if (child := os.fork()) == 0:
        result.numpy()[:] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert not result.any()


def test_codes_come_in_them() -> None:
    scores = torch.randn(2100, 4096)
    first = F.sinkhorn(scores, backend="cpu")
    at, right = first.data_ptr(), first.clone()
    second = F.sinkhorn(scores, backend="cpu")
    assert second.data_ptr() != at
    del first
    assert F.sinkhorn(scores, backend="cpu").data_ptr() == at
    assert torch.equal(second, right)
