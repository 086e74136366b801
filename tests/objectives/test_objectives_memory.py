# SPDX-License-Identifier: Apache-2.0
"""What a step of every objective adds to the resident memory of a process, at 16,384 instances and no workspace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import pycl
from pycl import doctor
from pycl.testing.objectives import OBJECTIVES

LIMIT_MIB = 300 * 1e6 / 2**20
if doctor.report()["cpu"]["isa"] == "amx":  # packed points take half as much memory again
    LIMIT_MIB *= 1.1
N, D = 16384, 32
SCRIPT = """
import json
import torch
from helpers.objective_cases import cast, values_and_gradients
from pycl.bench.measure.peak import growth
from pycl.testing.objectives import OBJECTIVES

torch.set_num_threads(1)
for name, row in OBJECTIVES.items():
    scalars = {key: torch.tensor(value) for key, value in row.scalars.items()}
    values_and_gradients(row, cast(row.make(64, 32), torch.float32), scalars)  # loads the code
    arguments = cast(row.make(%d, %d), torch.float32)
    found = growth(lambda: values_and_gradients(row, arguments, scalars))
    print(json.dumps([name, found["peak_mib"]]), flush=True)
"""


@cache
def peaks() -> dict[str, float]:
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(Path(pycl.__file__).parent.parent), str(tests), *filter(None, sys.path)])
    command = [sys.executable, "-c", SCRIPT % (N, D)]
    environment = os.environ | {"PYTHONPATH": path, "PYCL_WORKSPACE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to restart the high-water mark")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_stays_below_300_megabytes(name: str, backends: list[str]) -> None:
    if backends[0] != "cpu":
        pytest.skip("the compiled part is not built: the reference stores strips of the matrix")
    assert peaks()[name] < LIMIT_MIB
