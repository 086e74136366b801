# SPDX-License-Identifier: Apache-2.0
"""Every test that takes ``backend`` runs on each installed one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import interpreter
from helpers.selection import left_out
from hypothesis import settings

interpreter.use()

from pycl.backends.registry import SINKHORN, installed, why_not  # noqa: E402

EVERYTHING = os.environ.get("PYCL_TEST_ALL") == "1"
DEVICE = os.environ.get("PYCL_TEST_DEVICE", "cpu")
torch.set_default_device(DEVICE)

settings.register_profile("pycl", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("pycl")

LEFT = pytest.StashKey[int]()
# modules whose tests share what takes seconds to make, each for one worker of pytest-xdist
TOGETHER = {
    "test_bench",
    "test_bench_sinkhorn",
    "test_cached_ddp",
    "test_cuda_build",
    "test_cuda_on_cpu",
    "test_group",
    "test_group_errors",
    "test_group_extremes",
    "test_group_modifiers",
    "test_group_score_mod",
    "test_lightly_distributed",
    "test_objectives_group",
    "test_objectives_memory",
    "test_sentence_transformers_training",
    "test_transformers_ranks",
    "test_triton_aot",
    "test_uneven",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        dtype = torch.float64 if metafunc.definition.get_closest_marker("float64") else torch.float32
        metafunc.parametrize("backend", installed(DEVICE, dtype))
    if "isa" in metafunc.fixturenames:
        from helpers.cpu_settings import ISAS

        metafunc.parametrize("isa", ISAS, indirect=True)
    if "sinkhorn_backend" in metafunc.fixturenames:
        metafunc.parametrize("sinkhorn_backend", installed(DEVICE, operator=SINKHORN))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out backends with dtypes they refuse, which test_triton_host.py is about, and what test-all is for."""
    items[:] = [item for item in items if not _is_refused(getattr(item, "callspec", None))]
    left = set() if EVERYTHING or DEVICE != "cpu" else left_out(items)
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))
    config.stash[LEFT] = len(left)


def _is_refused(call: Any) -> bool:
    params = {} if call is None else call.params
    backend = params.get("backend", params.get("sinkhorn_backend"))
    return backend is not None and "dtype" in params and why_not(backend, DEVICE, params["dtype"]) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A worker of half a GiB for every CPU that this process may use, and one for while others wait for processes."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cpus + 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests go to whichever worker is free. xdist_group does nothing with pytest 9.2: pytest-xdist issue 1386."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if Path(module).stem in TOGETHER else nodeid

    return Scheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Every worker of pytest-xdist collects all; the process that reports collects nothing."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = session.config.stash.get(LEFT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT] = getattr(node, "workeroutput", {}).get("left", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if left := config.stash.get(LEFT, 0):
        terminalreporter.write_line(f"{left} cases are left to make test-all (PYCL_TEST_ALL=1)")


@pytest.fixture(scope="session")
def backends() -> list[str]:
    """The backends that serve tensors of the device under test, best first."""
    return installed(DEVICE)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the CPU kernels in turn."""
    from helpers.cpu_settings import instruction_set

    with instruction_set(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
