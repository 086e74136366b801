# SPDX-License-Identifier: Apache-2.0
"""The instruction sets of the CPU kernels; to be imported only where the compiled part is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pycl.backends import cpu

ISAS = cpu._C.supported_isas()
_chosen = [os.environ.get("PYCL_CPU_ISA", "")]  # an empty name is no choice, and not the same as the best one's name


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    cpu._C.select_isa(name)
    _chosen.append(name)
    try:
        yield
    finally:
        _chosen.pop()
        cpu._C.select_isa(_chosen[-1])
