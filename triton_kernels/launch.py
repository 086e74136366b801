# SPDX-License-Identifier: Apache-2.0
"""How a kernel is started: on a device, in Triton's interpreter, or into a list for ahead-of-time compilation."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import triton
import triton.language as tl

log = logging.getLogger("pycl")

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)  # $TRITON_INTERPRET, read when the kernels are defined
EMULATED = tl.constexpr(INTERPRETED)
SLOW = 0.5  # seconds: a first launch that took longer compiled


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]  # constexprs, num_warps, num_stages


class Recording(NamedTuple):
    architecture: int  # 90 for compute capability 9.0
    launches: list[Launch]


_recording: Recording | None = None
_seen: set[tuple[Any, ...]] = set()


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
    """Start ``kernel`` on the current stream; a compilation that the caller had to wait for is logged, once."""
    options = {name: getattr(value, "value", value) for name, value in options.items()}  # of a constexpr, its value
    options["enable_fp_fusion"] = True  # Triton's default until 3.9; a logit is one multiplication and addition
    if _recording is not None:
        _recording.launches.append(Launch(kernel, arguments, options))
        return
    if INTERPRETED:
        options = {name: value for name, value in options.items() if name in kernel.arg_names}
    key = (kernel, *sorted(options.items()))
    if key in _seen:
        kernel[grid](*arguments, **options)
        return
    start = time.perf_counter()
    kernel[grid](*arguments, **options)
    _seen.add(key)
    if (took := time.perf_counter() - start) > SLOW and not INTERPRETED:
        log.info("pycl compiled %s %s in %.1f s; Triton keeps it on disk", kernel.__name__, options, took)
