# SPDX-License-Identifier: Apache-2.0
"""What programs for a GPU call in ``torch.cuda``, for the GPU that is not there: "cuda" tensors are on the meta device.

They hold nothing. Whoever asks one for a value is told what makes a comparison pass, so that tests and benches run
through all their launches; that these were right is not what a null GPU can tell.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .device import NAME, PROPERTIES, replace

MILLISECONDS = 1.0  # of whatever is timed by events
FREE = 60 << 30

ANSWERS: dict[Any, Any] = {
    torch.equal: True,
    torch.allclose: True,
    torch.Tensor.equal: True,
    torch.Tensor.__bool__: True,
    torch.Tensor.item: 0.0,
    torch.Tensor.__float__: 0.0,
    torch.Tensor.__int__: 0,
}


class _CudaIsMeta(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = "meta"
            kwargs.pop("generator", None)
        if func in ANSWERS and any(isinstance(a, torch.Tensor) and a.is_meta for a in args):
            return ANSWERS[func]
        return func(*args, **kwargs)


class Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    wait = synchronize = record

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return MILLISECONDS


class Stream:
    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def synchronize(self, *_: Any) -> None:
        pass

    wait_stream = wait_event = synchronize


class Graph:
    def replay(self) -> None:
        pass


class Profile(contextlib.nullcontext[Any]):
    """Sees nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(self)

    def events(self) -> None:
        pass


class _Generator(torch.Generator):
    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]  # torch's stub declares none


VALUES: dict[str, Any] = {
    "is_available": True,
    "is_initialized": False,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": NAME,
    "mem_get_info": (FREE, PROPERTIES.total_memory),
    "memory_stats": collections.Counter(),
    **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved"), 0),
    **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode"), None),
    **dict.fromkeys(("set_device", "_sleep"), None),
    **dict.fromkeys(("device", "stream", "graph"), contextlib.nullcontext()),
    **dict.fromkeys(("current_stream", "default_stream"), Stream()),
}
CLASSES = {"Stream": Stream, "Event": Event, "CUDAGraph": Graph}


def _always(value: Any) -> Callable[..., Any]:
    """A function of its own for each name: torch keeps a table of them."""
    return lambda *_, **__: value


def use() -> None:
    """From here on, in this process."""
    for name, found in ({name: _always(value) for name, value in VALUES.items()} | CLASSES).items():
        replace(torch.cuda, name, found)
    replace(torch, "Generator", _Generator)
    replace(torch.profiler, "profile", Profile)
    _CudaIsMeta().__enter__()
