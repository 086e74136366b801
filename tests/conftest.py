# SPDX-License-Identifier: Apache-2.0
"""Every test that takes ``backend`` runs on each installed one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import interpreter
import pytest
import torch
from hypothesis import settings

interpreter.use()

from pycl.backends import SINKHORN, installed, why_not  # noqa: E402

EVERYTHING = os.environ.get("PYCL_TEST_ALL") == "1"
DEVICE = os.environ.get("PYCL_TEST_DEVICE", "cpu")
torch.set_default_device(DEVICE)

settings.register_profile("pycl", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("pycl")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        dtype = torch.float64 if metafunc.definition.get_closest_marker("float64") else torch.float32
        metafunc.parametrize("backend", installed(DEVICE, dtype))
    if "isa" in metafunc.fixturenames:
        from cpu_settings import ISAS

        metafunc.parametrize("isa", ISAS, indirect=True)
    if "sinkhorn_backend" in metafunc.fixturenames:
        metafunc.parametrize("sinkhorn_backend", installed(DEVICE, operator=SINKHORN))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out backends with dtypes they refuse, which test_triton_host.py is about, and what only takes time."""
    items[:] = [item for item in items if not hasattr(item, "callspec") or _is_wanted(item)]
    if not EVERYTHING:
        left = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left)


def _is_wanted(item: Any) -> bool:
    params = item.callspec.params
    backend = params.get("backend", params.get("sinkhorn_backend"))
    if backend is not None and "dtype" in params and why_not(backend, DEVICE, params["dtype"]) is not None:
        return False
    chosen = item.get_closest_marker("interpreted")
    interpreted = backend == "triton" and DEVICE == "cpu"
    return chosen is None or not interpreted or chosen.kwargs["when"](params)


@pytest.fixture(scope="session")
def backends() -> list[str]:
    """The backends that serve tensors of the device under test, best first."""
    return installed(DEVICE)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the CPU kernels in turn."""
    from cpu_settings import instruction_set

    with instruction_set(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
