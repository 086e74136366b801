# SPDX-License-Identifier: Apache-2.0
"""The workspace: memory for what a CPU would compute again otherwise, within a budget of bytes.

A forward keeps products of tiles in it for its backward, as many as fit. The budget bounds what is in use and what
waits for the next use together.
"""

from __future__ import annotations

import array
import itertools
import math
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from pycl.core.notices import warn_once

VARIABLE = "PYCL_WORKSPACE"
DEFAULT_BYTES = 512 << 20
DEFAULT_SHARE = 8  # of the free memory, where an eighth is less
MIN_PAGES = 128 << 10  # bytes from which memory comes from the system, and is worth keeping

_chosen: int | None = None  # by set_workspace
_default: int | None = None  # once it was needed
_numbers = itertools.count(1)
_in_use: dict[int, Tensor] = {}  # by number
_idle: dict[int, Tensor] = {}  # what waits for the next use, by the number that it had; oldest first
_tickets: dict[int, int] = {}  # numbers by the address of a ticket
MOST_IDLE = 8


class set_workspace:  # a function that is a context manager, too, as torch.set_grad_enabled
    """How many bytes of intermediate results pycl may keep on a CPU: for good, or in a ``with`` block.

    A loss of m rows and n columns has logits of ``m * n`` numbers. As many of them as fit wait for the backward, which
    then takes two matrix products instead of three; the rest is computed again. Values and gradients are the same bits
    at any budget. Sinkhorn of features computes its scores once where all of them fit, and in every sweep where they do
    not: the same up to rounding. 0 is the strictly linear mode. The memory stays with the process for the next step.

    Args:
        bytes: an integer from 0 to the memory of the machine; ``None`` for the default: ``PYCL_WORKSPACE`` where the
            environment has it, else 512 MiB or an eighth of the memory that was free at the first use, whichever is
            less.

    Raises:
        TypeError: bytes that are no integer.
        ValueError: bytes that are negative or more than the machine has.

    Example:
        >>> import pycl
        >>> with pycl.set_workspace(0):  # nothing is kept
        ...     pass
    """

    def __init__(self, bytes: int | None) -> None:
        global _chosen
        checked = None if bytes is None else _checked("bytes", bytes)
        self._before, _chosen = _chosen, checked
        _trim()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _chosen
        _chosen = self._before
        _trim()


def budget() -> int:
    """The bytes that are allowed."""
    global _default
    if _chosen is not None:
        return _chosen
    if _default is None:
        asked = os.environ.get(VARIABLE)
        _default = min(DEFAULT_BYTES, _free_memory() // DEFAULT_SHARE) if asked is None else _from_environment(asked)
    return _default


def left() -> int:
    """The bytes that are not in use."""
    return max(0, budget() - sum(memory.nbytes for memory in tuple(_in_use.values()))) if _in_use else budget()


def _from_environment(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"{VARIABLE} must be an integer, the number of bytes, got {text!r}") from None
    return _checked(VARIABLE, number)


def _checked(name: str, number: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} must be an integer or None, got {number!r}")
    most = _memory()
    if not 0 <= number <= most:
        raise ValueError(f"{name} must be from 0 to the {most} bytes of this machine's memory, got {number}")
    return number


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_memory() -> int:
    """Bytes that are free, or can be; no more than a container may use."""
    found = [_memory()]
    groups = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    for path, key in (("/proc/meminfo", "MemAvailable:"), *((group, "") for group in groups)):
        try:
            lines = [line[len(key) :].split() for line in Path(path).read_text().splitlines() if line.startswith(key)]
            found += [int(words[0]) * (1024 if "kB" in words else 1) for words in lines]
        except (OSError, ValueError, IndexError):  # not there, or "max"
            continue
    return min(found)


# Memory is taken by a number, which whoever took it gives back: at the end of a call, or by a ticket. Any thread may do
# so, and a garbage collection between any two steps of another call. So each step is one operation on a dictionary.
def take(fitting: Callable[[int], int]) -> int:
    """The number of new memory, of as many bytes as ``fitting(bytes that are left)`` wants; 0 where that is 0."""
    size = fitting(left())
    if size <= 0:
        return 0
    memory = _idle_of(size)
    if memory is None:
        try:
            memory = _new(size)
        except (OSError, RuntimeError) as error:  # of mmap, of torch
            warn_once("workspace", f"pycl computes logits again instead of keeping them: no {size} bytes ({error})")
            return 0
    number = next(_numbers)
    _in_use[number] = memory
    _trim()
    return number


def _idle_of(size: int) -> Tensor | None:
    for number, memory in tuple(_idle.items()):
        if memory.nbytes == size and (found := _idle.pop(number, None)) is not None:  # another thread may be faster
            return found
    return None


def _new(size: int) -> Tensor:
    """Pages of the system where there are such: malloc gives them back at once, and the next ones come cleared."""
    if size < MIN_PAGES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(size, dtype=torch.uint8, device="cpu")  # whatever the default device
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # the faults of 4 KiB pages took two thirds of the time of writing 49 MB
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _trim() -> None:
    """Let the oldest idle memory go until the rest is within the budget."""
    for number in tuple(_idle):
        if len(_idle) <= MOST_IDLE and sum(memory.nbytes for memory in tuple(_idle.values())) <= left():
            break
        _idle.pop(number, None)


def memory_of(number: int) -> Tensor | None:
    return _in_use.get(number)


def give_back(number: int) -> None:
    memory = _in_use.pop(number, None)
    if memory is not None and memory.nbytes >= MIN_PAGES:
        _idle[number] = memory
        _trim()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` in memory that is given back when the last tensor on it is gone; there is enough left."""
    number = take(lambda _: math.prod(shape) * dtype.itemsize)
    memory = memory_of(number)
    if memory is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    view = memory.numpy()
    weakref.finalize(view, give_back, number).atexit = False
    return torch.frombuffer(view, dtype=dtype).view(shape)


def ticket(number: int) -> Tensor:
    """A tensor for the memory, which is given back when the last tensor on its storage is gone.

    It says no more than that there is memory: which one goes by its address. So two runs of an operator have the same
    results, as torch.library.opcheck wants them, and a copy is a ticket for nothing.
    """
    view = memoryview(array.array("q", [1]))
    found = torch.frombuffer(view, dtype=torch.int64)
    _tickets[found.data_ptr()] = number
    weakref.finalize(view, _redeem, found.data_ptr()).atexit = False
    return found


def of_ticket(ticket: Tensor) -> int:
    """The number of a ticket's memory; 0 for any other tensor."""
    return _tickets.get(ticket.data_ptr(), 0)


def _redeem(address: int) -> None:
    give_back(_tickets.pop(address))
