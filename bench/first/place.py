# SPDX-License-Identifier: Apache-2.0
"""Where things are on the GPU machine, and how a program is started there."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .builds import BUILDS, environment

ROOT = Path(__file__).resolve().parents[2]
THREADS = "4"  # of torch on the CPU, of each of the processes that run at once


@dataclass(frozen=True)
class Place:
    pack: Path  # what was carried
    work: Path  # where it is laid out
    dry: bool = False  # on the null GPU
    build: str = "default"  # of what follows the smoke
    root: Path = ROOT

    @property
    def cache(self) -> Path:
        return self.work / "triton"

    @property
    def site(self) -> Path:
        return self.work / "site"

    @property
    def ptxas(self) -> Path:
        return self.work / "ptxas" / "ptxas"

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(self.root / "tests"), str(self.site), os.environ.get("PYTHONPATH", "")]
        return (
            os.environ
            | environment(self.build, self.ptxas)
            | {
                "TRITON_CACHE_DIR": str(self.cache),
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": THREADS,
            }
        )

    def python(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, *(("-m", "null_gpu") if self.dry else ("-m",)), module, *arguments]

    def other_builds(self) -> list[str]:
        names = [name for name in BUILDS if name != "default"]
        return [name for name in names if not BUILDS[name].ptxas or self.ptxas.exists()]

    def entries(self) -> int:
        """Of Triton's cache: what is added was not carried."""
        return sum(1 for _ in self.cache.iterdir()) if self.cache.exists() else 0
