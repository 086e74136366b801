# SPDX-License-Identifier: Apache-2.0
"""Wheels of Python alone: made where there is no C++ compiler or none is wanted, never because a build failed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")
SOURCES += ("pycl", "bench", "triton_kernels", "csrc", "release")
NEEDED = ("cmake", "ninja", "make")
NAME = "pycl_kernels-*-py3-none-any.whl"
BUILD = """
import json, sys
from scikit_build_core.build import build_wheel
folder, settings = sys.argv[1:]
build_wheel(folder, json.loads(settings))
"""
LOSS = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
import torch, pycl
z = torch.randn(2, 5, 3, requires_grad=True)
loss = pycl.functional.nt_xent(z)
loss.backward()
assert torch.equal(loss, pycl.functional.nt_xent(z, backend="reference"))
assert z.grad.isfinite().all()
"""
pytestmark = [
    pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="runs in a checkout"),
    pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed"),
]


@pytest.fixture(scope="module")
def no_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with what a build needs except a compiler."""
    folder = tmp_path_factory.mktemp("bin")
    for tool in NEEDED:
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


def python(*arguments: str, where: Path, path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": str(where), "PYCL_CUDA": "OFF", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=120)


def build(folder: Path, path: str, sources: Path = ROOT, **variables: str) -> tuple[list[Path], str]:
    """The wheels that a build leaves and all that it said."""
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    settings = json.dumps({"build-dir": str(folder / "build" / "{wheel_tag}")})
    done = python("-c", BUILD, str(folder), settings, where=sources, path=path, **variables)
    wheels = sorted(folder.glob("*.whl"))
    assert (done.returncode == 0) == bool(wheels), done.stdout + done.stderr
    return wheels, done.stdout + done.stderr


def test_without_a_compiler(no_compiler: str, tmp_path: Path) -> None:
    """The wheel computes the losses by plain torch, and the doctor and the first loss say so."""
    (wheel,), _ = build(tmp_path, no_compiler)
    assert wheel.match(NAME)
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert not list(site.rglob("*.so"))
    elsewhere = {"where": tmp_path, "path": no_compiler, "PYTHONPATH": str(site)}
    loss = python("-P" if sys.version_info >= (3, 11) else "-B", "-c", LOSS, **elsewhere)
    assert loss.returncode == 0, loss.stderr
    (said,) = loss.stdout.splitlines()
    assert said.startswith("WARNING pycl uses backend 'reference' for cpu tensors of float32")
    doctor = python("-m", "pycl.doctor", **elsewhere)
    assert doctor.returncode == 0, doctor.stderr
    lines = doctor.stdout.splitlines()
    assert any(line.split() == ["cpu", "tensors", "reference"] for line in lines), doctor.stdout
    for reason in (said, next(line for line in lines if line.startswith("compiled part"))):
        assert "C++ compiler" in reason
        assert "pip install" in reason


def test_no_compiled_part_is_wanted(tmp_path: Path) -> None:
    """Not even CMake is."""
    (wheel,), _ = build(tmp_path, str(tmp_path), PYCL_CPU="OFF")
    assert wheel.match(NAME)
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("part", ["CPU", "CUDA"])
def test_a_compiled_part_is_demanded(part: str, no_compiler: str, tmp_path: Path) -> None:
    wheels, said = build(tmp_path, no_compiler, **{f"PYCL_{part}": "ON"})
    assert not wheels
    assert "PYCL_CPU=OFF" in said


@pytest.mark.parametrize("part", ["CPU", "CUDA"])
def test_a_value_that_means_nothing(part: str, no_compiler: str, tmp_path: Path) -> None:
    wheels, said = build(tmp_path, no_compiler, **{f"PYCL_{part}": "maybe"})
    assert not wheels
    assert f"PYCL_{part} must be AUTO, ON or OFF, got 'maybe'" in said


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
def test_a_build_that_fails_makes_no_wheel(no_compiler: str, tmp_path: Path) -> None:
    """Neither does a folder of builds remember that there was no compiler."""
    pytest.importorskip("pybind11", reason="pybind11 is not installed")
    sources, folder = tmp_path / "sources", tmp_path / "wheels"
    folder.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (sources / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, sources / name)
    for source in (sources / "csrc").rglob("*.cpp"):
        source.write_text("#error planted by a test\n")
    (wheel,), said = build(folder, no_compiler, sources)
    assert "planted" not in said
    wheel.unlink()
    wheels, said = build(folder, os.environ["PATH"], sources)
    assert not wheels
    assert "planted by a test" in said
    assert "PYCL_CPU=OFF" in said
