# SPDX-License-Identifier: Apache-2.0
"""A caching allocator for large blocks on a CPU: the buffer of a freed tensor serves the next one of its size.

malloc returns large blocks to the system: from 32 MiB on always, below that by a rule that depends on earlier calls.
The system clears new pages before it hands them out. For 49 MB of codes that took 3 of 13 ms, and ten times that where
the host of a virtual machine had taken the free memory.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MIN_BYTES = 512 << 10  # below, a step has no page faults that it had not without this, and malloc is quicker by 5 us
MAX_IDLE_BYTES = 256 << 20  # of all idle buffers of results together


class Pool:
    """Buffers that tensors give back when the last one on them is gone; ``limit()`` bytes of idle ones are kept."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self.limit = limit
        self.idle: list[mmap.mmap] = []  # oldest first

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """``torch.empty`` in a buffer that is released when the last tensor on it is gone."""
        size = math.prod(shape) * dtype.itemsize
        if size < MIN_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
            return torch.empty(shape, dtype=dtype, device="cpu")  # whatever the default device
        buffer = self._acquire(size) or _new(size)
        view = memoryview(buffer)
        weakref.finalize(view, self._release, buffer).atexit = False
        return torch.frombuffer(view, dtype=dtype).view(shape)

    def empty_like(self, z: Tensor) -> Tensor:
        """The same for a contiguous tensor of the shape and dtype of ``z``."""
        if z.nbytes < MIN_BYTES:
            return torch.empty_like(z, memory_format=torch.contiguous_format)  # a third of the time with a shape
        return self.empty(z.shape, z.dtype)

    # Any thread may call these, and a garbage collection may call `_release` between any two steps of another call. So
    # each step is one operation on the list.
    def _acquire(self, size: int) -> mmap.mmap | None:
        """An idle buffer of exactly this size, or None."""
        for buffer in tuple(self.idle):
            if len(buffer) == size:
                try:
                    self.idle.remove(buffer)
                except ValueError:  # another thread was faster
                    continue
                return buffer
        return None

    def _release(self, buffer: mmap.mmap) -> None:
        """Keep a buffer for the next tensor; the oldest buffers go where all together are too large."""
        if len(buffer) <= self.limit():
            self.idle.append(buffer)
        self.trim(self.limit())

    def trim(self, most: int) -> None:
        """Let the oldest idle buffers go until the others take at most this many bytes."""
        while self.idle and sum(map(len, tuple(self.idle))) > most:
            del self.idle[:1]


def _new(size: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # the faults of 4 KiB pages took two thirds of the time of writing 49 MB
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


results = Pool(lambda: MAX_IDLE_BYTES)
empty = results.empty
empty_like = results.empty_like
