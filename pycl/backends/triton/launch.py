# SPDX-License-Identifier: Apache-2.0
"""How a kernel is started: on a device, in Triton's interpreter, or into a list for ahead-of-time compilation."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pycl.triton_kernels.interpreter import INTERPRETED

log = logging.getLogger("pycl")

SLOW = 0.5  # seconds: a first launch that took longer compiled


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]  # constexprs, num_warps, num_stages


class Recording(NamedTuple):
    architecture: int  # 90 for compute capability 9.0
    launches: list[Launch]


_recording: Recording | None = None
# What launches of one form were compiled to, with the constexprs that follow their arguments.
_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


@contextmanager
def recording(architecture: int) -> Iterator[list[Launch]]:
    """Launches inside are listed and not run, as for a GPU that is not here; tensors may be on the meta device."""
    global _recording
    _recording, outer = Recording(architecture, []), _recording
    try:
        yield _recording.launches
    finally:
        _recording = outer


def recorded_architecture() -> int | None:
    return None if _recording is None else _recording.architecture


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start ``kernel`` on the current stream; a compilation that the caller had to wait for is logged, once.

    Triton binds, specialises and hashes the arguments of every call, and compares the globals that the kernel uses:
    some 20 us. A launch of a form that was seen before goes to what that was compiled to.
    """
    if _recording is not None:
        _recording.launches.append(Launch(kernel, arguments, _for_triton(options)))
        return
    if INTERPRETED:
        known = {name: value for name, value in _for_triton(options).items() if name in kernel.arg_names}
        kernel[grid](*arguments, **known)
        return
    key: list[Any] = [kernel, triton.runtime.driver.active.get_current_device(), *options, *options.values()]
    _add_specializations(key, arguments)
    form = tuple(key)
    found = _compiled.get(form)
    if found is None:
        _compiled[form] = _first(kernel, grid, arguments, _for_triton(options))
    else:
        compiled, constants = found
        compiled[(*grid, 1, 1)[:3]](*arguments, *constants)


def _for_triton(options: dict[str, Any]) -> dict[str, Any]:
    return options | {"enable_fp_fusion": True}  # the default until 3.9; a logit is one multiplication and addition


def _first(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, tuple[Any, ...]]:
    """Launch through Triton, which compiles where it has to; what later launches of the same form need."""
    start = time.perf_counter()
    compiled = kernel[grid](*arguments, **options)
    if (took := time.perf_counter() - start) > SLOW:
        log.info("pycl compiled %s %s in %.1f s; Triton keeps it on disk", kernel.__name__, options, took)
    return compiled, tuple(options[name] for name in kernel.arg_names[len(arguments) :])


def _add_specializations(key: list[Any], values: Iterable[Any]) -> None:
    """All that Triton may specialise a kernel for: never less, or a launch would run what another was compiled to."""
    add, before = key.append, None
    for value in values:
        kind = type(value)
        if value is None:
            add(None)
        elif kind is int:
            add(value if 0 <= value < 2 else (value & 15 == 0) | (2 if -(2**31) <= value < 2**31 else 4))
        elif kind is TensorDescriptor:
            add(value.base.dtype)
            key += value.block_shape
        elif isinstance(value, Tensor):
            add(value.dtype)
            add(value.data_ptr() % 16 == 0)
        elif kind is float or kind is bool or value is before:  # as both sides of a symmetric problem are
            add(kind)
        else:  # a NamedTuple of pointers and numbers
            _add_specializations(key, value)
            before = value


def cdiv(a: int, b: int) -> int:
    """Triton's own takes two microseconds on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
