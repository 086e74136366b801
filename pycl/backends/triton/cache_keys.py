# SPDX-License-Identifier: Apache-2.0
"""Keys of Triton's disk cache that do not depend on what a process compiled before.

Triton 3.6 puts the globals of a function that a kernel calls into the kernel's key where that function's own key is
known already, and leaves them out where it is not: the same kernel then is compiled again under another key.
"""

from __future__ import annotations

import sys

from triton.runtime.jit import JITFunction


def settle() -> None:
    """Know the keys of all of our functions, those that are called before their callers."""
    done: set[int] = set()
    for name in sorted(name for name in sys.modules if name.startswith("pycl.triton_kernels.")):
        for value in list(vars(sys.modules[name]).values()):
            if isinstance(value, JITFunction):
                _settle(value, done)


def _settle(function: JITFunction, done: set[int]) -> None:
    if id(function) in done:
        return
    done.add(id(function))
    names = function.fn.__code__.co_names
    for called in (function.fn.__globals__.get(name) for name in names):
        if isinstance(called, JITFunction):
            _settle(called, done)
    _ = function.cache_key
