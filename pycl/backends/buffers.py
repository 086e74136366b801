# SPDX-License-Identifier: Apache-2.0
"""Memory for large results on a CPU: a result that is gone leaves its pages to the next.

malloc gives much memory back to the system, from 32 MiB on always and below that by a rule that depends on what came
before. New pages are cleared first: 3 of 13 ms for 49 MB of codes, and ten times that where the host of a virtual
machine has taken the free memory.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST = 1 << 20  # malloc has what is smaller at hand, and is quicker by 3 us
MOST = 256 << 20  # idle pages of all sizes together

_idle: list[mmap.mmap] = []  # oldest first


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` in pages that come back when the last tensor on them is gone."""
    size = math.prod(shape) * dtype.itemsize
    if size <= LEAST or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(shape, dtype=dtype)
    pages = _taken(size) or _new(size)
    view = memoryview(pages)
    weakref.finalize(view, _give_back, pages).atexit = False
    return torch.frombuffer(view, dtype=dtype).view(shape)


def _new(size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # the faults of 4 KiB pages took two thirds of the time of writing 49 MB
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


# Any thread may come here, and a garbage collection in between: each step below is one operation on the list.
def _taken(size: int) -> mmap.mmap | None:
    for pages in tuple(_idle):
        if len(pages) == size:
            try:
                _idle.remove(pages)
            except ValueError:  # another thread was faster
                continue
            return pages
    return None


def _give_back(pages: mmap.mmap) -> None:
    if len(pages) <= MOST:
        _idle.append(pages)
    while sum(map(len, tuple(_idle))) > MOST:
        del _idle[:1]
