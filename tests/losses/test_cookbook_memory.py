# SPDX-License-Identifier: Apache-2.0
"""Recipes of docs/cookbook take the memory that the table of the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import cookbook

import pycl
from pycl.backends.registry import installed

pytestmark = pytest.mark.skipif(not cookbook.FOLDER.exists(), reason="runs in a checkout")
measured = pytest.mark.skipif(
    "cpu" not in installed("cpu", torch.float32) or not Path("/proc/self/clear_refs").exists(),
    reason="needs the compiled part, and Linux to restart the high-water mark",
)


def matrix_mib(n: int) -> float:
    return 4 * n * n / 2**20


def peaks(n: int, names: list[str]) -> dict[str, float]:
    """MiB that a step on n rows of 16 features adds, of each recipe."""
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(Path(pycl.__file__).parent.parent), str(tests), *filter(None, sys.path)])
    command = [sys.executable, "-m", "helpers.cookbook.peaks", str(n), "16", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return {name: float(mib) for name, mib in (line.split() for line in done.stdout.splitlines())}


@measured
def test_points() -> None:
    names = [name for name, size in cookbook.memory().items() if size == "points"]
    found = peaks(4096, names)
    assert list(found) == names
    assert not {name: mib for name, mib in found.items() if mib > matrix_mib(4096) / 4}


@measured
@pytest.mark.parametrize(
    ("name", "n"), [("mean_shift", 8192), pytest.param("curricular_face", 16384, marks=pytest.mark.thorough)]
)
def test_strips(name: str, n: int) -> None:
    """Of the k largest, and of a score_mod."""
    assert cookbook.memory()[name] == "strips"
    assert peaks(n, [name])[name] < matrix_mib(n) / 3


def test_plain_torch_on_strips_is_called_so() -> None:
    for page in cookbook.FORMS:
        for name, body in cookbook.bodies(page).items():
            on_strips = re.search(r"score_mod\"?[=:]|pair_top\(", body) is not None
            assert (cookbook.memory()[name] == "strips") == on_strips, name
