# SPDX-License-Identifier: Apache-2.0
"""The doctor runs on a healthy machine, without the compiled part, and with settings that cannot work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import pycl
from pycl import doctor

WITHOUT_COMPILED_PART = """
import runpy, sys
import pycl._load

def extension():
    raise ImportError("hidden by a test")

pycl._load.extension = extension
runpy.run_module("pycl.doctor", run_name="__main__")
"""


def run(*arguments: str, code: str | None = None, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYCL_")}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    how = ["-m", "pycl.doctor"] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *how, *arguments], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(**options: str) -> dict[str, Any]:
    return json.loads(run("--json", **options))


def test_report(backends: list[str]) -> None:
    found = report()
    assert found["pycl"]["version"] == pycl.__version__
    assert found["torch"]["version"] == torch.__version__
    assert found["cpu"]["model"]
    assert found["threads"]["count"] >= 1
    assert found["float32_matmul_precision"] == "highest"
    assert found["environment"] == {}
    assert found["backends"]["cpu"]["takes"] == backends[0]
    assert set(found["backends"]["cpu"]["why_not"]).isdisjoint(backends)
    if "cpu" in backends:
        assert found["compiled"]["built"]
        assert found["cpu"]["isa"] == found["cpu"]["isas"][0]


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split("  ")[0] for line in lines}
    assert {"pycl", "torch", "instruction set", "threads", "cpu tensors", "cuda tensors", "cuda sinkhorn"} <= names
    assert len({len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines if line[0] != " "}) == 1, lines


def test_leaves_the_one_log_message_to_the_loss(caplog: pytest.LogCaptureFixture) -> None:
    doctor.backends._automatic.cache_clear()
    with caplog.at_level("INFO", "pycl"):
        doctor.report()
        assert not caplog.records
        doctor.backends.choose(None, "cpu")
    assert len(caplog.records) == 1


def test_without_the_compiled_part() -> None:
    found = report(code=WITHOUT_COMPILED_PART)
    assert found["compiled"] == {"built": False, "path": None, "why_not": "hidden by a test"}
    assert found["cpu"]["isa"] is None
    assert found["backends"]["cpu"]["takes"] == "reference"
    assert "hidden by a test" in found["backends"]["cpu"]["why_not"]["cpu"]
    assert "none: hidden by a test" in doctor.text(found)


def test_the_cuda_library() -> None:
    found = report()
    built, why_not = found["cuda_library"]["built"], found["sinkhorn"]["cuda"]["why_not"].get("cuda", "")
    assert found["cuda_library"]["path"] if built else "was not built" in found["cuda_library"]["why_not"]
    assert found["sinkhorn"]["cuda"]["takes"] == "cuda" if built else "pip install" in why_not
    assert "not built" in why_not or built
    assert ("no pair_stats" in found["backends"]["cuda"]["why_not"]["cuda"]) == built


def test_instruction_set_that_does_not_exist(backends: list[str]) -> None:
    if "cpu" not in backends:
        pytest.skip("the compiled part is not built")
    found = report(PYCL_CPU_ISA="abacus")
    assert found["environment"] == {"PYCL_CPU_ISA": "abacus"}
    assert found["cpu"]["isa"] is None
    assert found["backends"]["cpu"]["takes"] == "reference"
    assert "abacus" in found["backends"]["cpu"]["why_not"]["cpu"]


@pytest.mark.parametrize("value", ["abacus", "cuda"])
def test_backend_that_cannot_run(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCL_BACKEND", value)
    found = doctor.report()
    assert found["environment"]["PYCL_BACKEND"] == value
    assert found["backends"]["cpu"]["takes"] is None
    assert value in found["backends"]["cpu"]["error"]
    assert f"error: {found['backends']['cpu']['error']}" in doctor.text(found)


def test_backend_that_fails_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*question: object) -> str | None:
        raise OSError("libabacus.so: cannot open")

    monkeypatch.setattr(doctor.backends, "why_not", broken)
    found = doctor.report()
    assert found["backends"]["cpu"]["why_not"]["triton"] == (
        "backend='triton' fails to load: OSError: libabacus.so: cannot open"
    )
