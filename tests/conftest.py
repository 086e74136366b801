# SPDX-License-Identifier: Apache-2.0
"""Every test that takes ``backend`` runs on each installed one."""

from __future__ import annotations

import interpreter
import pytest
import torch
from hypothesis import settings

interpreter.use()

from pycl.backends import installed  # noqa: E402

settings.register_profile("pycl", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("pycl")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", installed("cpu"))


@pytest.fixture(scope="session")
def backends() -> list[str]:
    """The backends that serve CPU tensors here, best first."""
    return installed("cpu")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
