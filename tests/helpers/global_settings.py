# SPDX-License-Identifier: Apache-2.0
"""Contexts in which a global setting has another value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from pycl.backends.registry import why_not


def during(get: Callable[[], Any], put: Callable[[Any], Any]) -> Callable[[Any], AbstractContextManager[None]]:
    """A context in which a global setting has another value."""

    @contextmanager
    def setting(value: Any) -> Iterator[None]:
        before = get()
        put(value)
        try:
            yield
        finally:
            put(before)

    return setting


@contextmanager
def threads(n: int) -> Iterator[None]:
    """So many threads, whether or not the work is worth them."""
    with during(torch.get_num_threads, torch.set_num_threads)(n), pytest.MonkeyPatch.context() as patch:
        if why_not("cpu", "cpu") is None:
            patch.setattr("pycl.backends.cpu.ELEMENTS_PER_THREAD", 1)
        yield


matmul_precision = during(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
# fills what torch.empty returns with NaN
deterministic = during(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms)
