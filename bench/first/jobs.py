# SPDX-License-Identifier: Apache-2.0
"""The calls whose kernels are carried, each a process on the null GPU with a Triton cache of the workshop."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import builds, pack, processes
from .builds import BUILDS
from .smoke import IN_CUDA, NAMES

SECONDS = 3600.0
SOURCES = (
    *("pycl/**/*.py", "triton_kernels/*.py", "bench/**/*.py", "tests/null_gpu/*"),
    *("tests/conftest.py", "tests/helpers/*.py", "tests/backends/test_triton_gpu.py"),
)
USED = "PYCL_NULL_GPU_USED"  # null_gpu.cache


class Job(NamedTuple):
    name: str
    build: str
    module: str
    arguments: tuple[str, ...]

    def only(self, cases: Sequence[str]) -> Job:
        return self._replace(arguments=tuple(case for case in self.arguments if case in cases))


_SMOKE = tuple(name for name in NAMES if not name.startswith(IN_CUDA))
_BENCH = ("--suite", "gpu", "--baselines", "peers", "--repeats", "1", "--budget", "100000")
_TESTS = ("tests/backends/test_triton_gpu.py", "-q", "-p", "no:cacheprovider", "--tb=line")
# the longest first
JOBS = (
    Job("tests", "default", "pytest", _TESTS),
    *(Job(f"smoke-{build}", build, "pycl.bench.first.cases", _SMOKE) for build in BUILDS),
    Job("bench", "default", "pycl.bench", _BENCH),
)


class Workshop:
    """Where things are made, and stay for the next time."""

    def __init__(self, root: Path, folder: Path, site: Path | None = None, ptxas: Path | None = None) -> None:
        self.root, self.folder = root, folder
        self.cache, self.records = folder / "triton", folder / "jobs"
        self.site, self.ptxas = site or folder / "site", ptxas or folder / "ptxas"
        for path in (self.cache, self.records, self.site):
            path.mkdir(parents=True, exist_ok=True)


def fill(shop: Workshop, job: Job) -> list[str]:
    """Compile what a job needs; a line where it fails. Nothing where neither it nor any source has changed."""
    if BUILDS[job.build].ptxas and not shop.ptxas.exists():
        return [f"{job.name} is left out: there is no newer ptxas"]
    sources = (file for pattern in SOURCES for file in shop.root.glob(pattern) if file.is_file())
    installed = sorted(path.name for path in shop.site.iterdir())
    state = pack.digest(sources, *job.arguments, job.build, sys.version, *installed)
    if _read(shop, job).get("state") == state and all((shop.cache / e).exists() for e in entries_of(shop, job)):
        return list(_read(shop, job)["failed"])
    used = shop.records / f"{job.name}.used"
    used.write_text("")
    paths = [str(shop.root / "tests"), str(shop.site)]
    environment = os.environ | builds.environment(job.build, shop.ptxas)
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(shop.cache), USED: str(used)}
    command = [sys.executable, "-m", "null_gpu", job.module, *job.arguments]
    done = processes.run(command, seconds=SECONDS, environment=environment, folder=shop.root)
    (shop.records / f"{job.name}.log").write_text(f"{done.out}\n{done.error}")
    failed = [] if done.ok else [f"{job.name} fails on the null GPU: {done.said} ({shop.records}/{job.name}.log)"]
    found = {what: sorted(_entries(used, what)) for what in ("used", "made")}
    _file(shop, job).write_text(json.dumps({"state": state, "failed": failed, **found}))
    print(f"{job.name}: {len(found['used'])} entries, {len(found['made'])} made, {done.seconds:.0f} s", flush=True)
    return failed


def entries_of(shop: Workshop, job: Job, what: str = "used") -> set[str]:
    return set(_read(shop, job).get(what, ()))


def _entries(used: Path, what: str) -> set[str]:
    pairs = (line.split() for line in used.read_text().splitlines())
    return {entry for said, entry in pairs if said == what}


def _file(shop: Workshop, job: Job) -> Path:
    return shop.records / f"{job.name}.json"


def _read(shop: Workshop, job: Job) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_file(shop, job).read_text())
    except (OSError, ValueError):
        return {}
    return found
