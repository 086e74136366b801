# SPDX-License-Identifier: Apache-2.0
"""The doctor runs on a healthy machine, without the compiled part, and with settings that cannot work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pycl
from pycl import doctor
from pycl.tools import assembler
from pycl.tools.assembler import Assembler

WITHOUT_COMPILED_PART = """
import runpy, sys
import pycl.backends.compiled

def extension():
    raise ImportError("hidden by a test")

pycl.backends.compiled.extension = extension
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
    assert found["float32_matmul_precision"] == {"cpu": "highest", "cuda": "highest"}
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
    doctor.registry._automatic.cache_clear()
    with caplog.at_level("INFO", "pycl"):
        doctor.report()
        assert not caplog.records
        doctor.registry.choose(None, "cpu")
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

    monkeypatch.setattr(doctor.registry, "why_not", broken)
    found = doctor.report()
    assert found["backends"]["cpu"]["why_not"]["triton"] == (
        "backend='triton' fails to load: OSError: libabacus.so: cannot open"
    )


@pytest.mark.parametrize("installed", [False, True])
def test_another_project_of_the_same_name(installed: bool, tmp_path: Path) -> None:
    """PyPI's pycl is one file pycl.py; in the same folder, or behind it on the path, ours is what is imported."""
    if installed:
        (tmp_path / "pycl.py").write_text("raise RuntimeError('the other project')\n")
        (tmp_path / "pycl-0.1.1.dist-info").mkdir()
        (tmp_path / "pycl-0.1.1.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: pycl\nVersion: 0.1.1\n"
        )
    found = run(PYTHONPATH=os.pathsep.join([*filter(None, sys.path), str(tmp_path)])).splitlines()
    said = [line for line in found if "another project" in line]
    assert len(said) == installed
    for line in said:
        assert line.startswith("warning")
        assert "the distribution pycl 0.1.1" in line
        assert "pip uninstall pycl" in line


HOPPER, ADA, AMPERE = (9, 0), (8, 9), (8, 0)
NEEDS_TRITON = pytest.mark.skipif(
    doctor._version("triton") is None, reason="Triton chooses the assembler, and is not installed"
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The compute capabilities of the GPUs that torch is made to see."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    return found


@NEEDS_TRITON
@pytest.mark.parametrize("version", ["12.8.93", "13.0.88", "13.1.80", "13.3.33", "13.10.1"])
@pytest.mark.parametrize("capability", [AMPERE, ADA, HOPPER, (10, 0), None])
def test_an_assembler_in_doubt(
    version: str, capability: tuple[int, int] | None, gpus: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus += [capability] * 2 if capability else []
    tool = Assembler("somewhere/ptxas", version, "TRITON_PTXAS_PATH")
    monkeypatch.setattr(assembler, "assembler_of", lambda architecture: tool)
    found = doctor.report()
    assert all(taken == tool._asdict() for taken in found["ptxas"]["takes"].values())
    assert list(found["ptxas"]["takes"]) == (
        [str(10 * capability[0] + capability[1])] if capability else ["80", "90", "100"]
    )
    in_doubt = capability == HOPPER and version in ("12.8.93", "13.0.88", "13.1.80")
    assert len(found["warnings"]) == in_doubt
    lines = [line for line in doctor.text(found).splitlines() if line.startswith("warning")]
    assert len(lines) == in_doubt
    for line in lines:
        assert f"ptxas {version} may make wrong code for compute capability 9.0" in line
        assert "10486" in line
        assert "TRITON_PTXAS_PATH can name a newer ptxas" in line


@NEEDS_TRITON
def test_the_assembler_that_triton_takes(gpus: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus += [HOPPER, AMPERE, HOPPER]
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    found = doctor.report()["ptxas"]["takes"]
    assert list(found) == ["80", "90"]
    for tool in found.values():
        said = subprocess.run([tool["path"], "--version"], capture_output=True, text=True, check=True).stdout
        assert f"V{tool['version']}" in said
        assert tool["version"].count(".") == 2


@NEEDS_TRITON
def test_another_assembler_is_asked_for(tmp_path: Path) -> None:
    fake = tmp_path / "ptxas"
    fake.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 77.1, V77.1.5'\n")
    variables = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
    broken = report(**dict.fromkeys(variables, str(tmp_path / "none")))
    assert any(f"{tmp_path / 'none'} does not run: Triton takes" in warning for warning in broken["warnings"])
    assert "77.1.5" not in str(broken["ptxas"])
    fake.chmod(0o755)
    found = report(**dict.fromkeys(variables, str(fake)))
    assert {tool["version"] for tool in found["ptxas"]["takes"].values()} == {"77.1.5"}
    assert found["warnings"] == []
    assert f"77.1.5 in {fake} for " in doctor.text(found)


@pytest.mark.parametrize("installed", [False, True])
def test_no_assembler(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(architecture: int) -> Assembler:
        raise RuntimeError("Cannot find ptxas")

    monkeypatch.setattr(assembler, "assembler_of", none)
    monkeypatch.setattr(doctor, "_version", lambda name: "3.7.1" if installed and name == "triton" else None)
    found = doctor.report()
    reason = "RuntimeError: Cannot find ptxas" if installed else "Triton is not installed"
    assert found["ptxas"] == {"takes": {}, "why_not": reason}
    assert found["warnings"] == []
    assert f"none: {reason}" in doctor.text(found)
