# SPDX-License-Identifier: Apache-2.0
"""The package outside its repository, in it without the compiled part, and the backends a run insists on."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pycl
from pycl.backends import registry

ROOT = Path(__file__).parent.parent.parent
DISTRIBUTION = "pycl-kernels"
SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()  # it came with 3.11


def python(code: str, where: Path, *flags: str, **variables: str) -> str:
    """The output of a script in a clean environment and another directory."""
    drop = ("PYTHONPATH", "PYTHONSAFEPATH")
    environment = {name: value for name, value in os.environ.items() if name not in drop and name[:5] != "PYCL_"}
    command = [sys.executable, *flags, "-c", code]
    done = subprocess.run(
        command, cwd=where, env=environment | variables, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_required_backends_are_present() -> None:
    """``PYCL_TEST_REQUIRE=cpu,triton``: a run in which everything was skipped must not pass."""
    required = [name for name in os.environ.get("PYCL_TEST_REQUIRE", "").split(",") if name]
    if not required:
        pytest.skip("PYCL_TEST_REQUIRE names no backend")
    for name in required:
        device = "cuda" if name == "cuda" else "cpu"
        assert registry.why_not(name, device) is None


INSTALLED = """
import importlib.metadata, json, pathlib, torch, pycl, pycl.backends.cpu
z = torch.randn(2, 50, 8, requires_grad=True)
loss = pycl.functional.nt_xent(z, backend="cpu")
loss.backward()
assert loss.isfinite() and z.grad.isfinite().all()
assert torch.allclose(loss, pycl.functional.nt_xent(z, backend="reference"), atol=1e-5)
print(pycl.__file__, pycl.backends.cpu._C.__file__, pycl.__version__, sep="\\n")
"""


def installed() -> importlib.metadata.Distribution:
    """The distribution, where it is a copy of the sources."""
    try:
        found = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{DISTRIBUTION} is not installed")
    if '"editable": true' in (found.read_text("direct_url.json") or "").replace(" : ", ": "):
        pytest.skip(f"{DISTRIBUTION} is installed in editable mode")
    return found


def test_the_installed_package_works_elsewhere(tmp_path: Path) -> None:
    distribution = installed()
    package, module, version = python(INSTALLED, tmp_path, *SAFE_PATH).split("\n")[:3]
    where = Path(str(distribution.locate_file(""))).resolve()
    assert Path(package).resolve().is_relative_to(where)
    assert Path(module).resolve().parent == Path(package).resolve().parent
    assert ROOT.resolve() not in Path(package).resolve().parents or where.is_relative_to(ROOT.resolve())
    assert version == distribution.version == pycl.__version__


def test_the_installed_package_is_complete() -> None:
    files = {str(file) for file in installed().files or []}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "pycl").rglob("*.py")}
    sources |= {
        f"pycl/{path.relative_to(ROOT)}"
        for part in ("bench", "triton_kernels")
        for path in ROOT.glob(f"{part}/**/*.py")
    }
    assert sources <= files
    assert {"pycl/py.typed", "pycl/modules/losses.pyi"} <= files
    assert not [name for name in files if name.startswith(("bench/", "triton_kernels/", "tests/", "csrc/"))]


HIDDEN = """
import pathlib, sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "pycl._C":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
import importlib.metadata
def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.distribution = absent
"""
WITHOUT_COMPILED_PART = (
    HIDDEN
    + """
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
import torch, pycl
print(pathlib.Path(pycl.__file__).parent.parent)
z = torch.randn(2, 5, 3)
loss = pycl.functional.nt_xent(z)
assert torch.equal(loss, pycl.functional.nt_xent(z, backend="reference"))
assert pycl.backends.installed("cpu") == ["reference"]
for _ in range(2):
    try:
        pycl.functional.nt_xent(z, backend="cpu")
    except pycl.BackendUnavailable as error:
        print(error)
"""
)


def test_without_the_compiled_part(tmp_path: Path) -> None:
    """Importing works, the automatic choice says what it took and why, asking by name says how to get it."""
    if not (ROOT / "pycl").exists():
        pytest.skip("runs in a checkout")
    where, chosen, *errors = python(WITHOUT_COMPILED_PART, tmp_path, PYTHONPATH=str(ROOT)).splitlines()
    assert Path(where).resolve() == ROOT.resolve()
    assert "'reference'" in chosen
    assert "pip install" in chosen
    assert len(errors) == 2
    for error in errors:
        assert error.startswith("backend='cpu' is not available")
        assert "pip install" in error


def test_importing_does_not_load_what_is_not_needed(tmp_path: Path) -> None:
    """A backend is loaded when it is first used; extras are not imported at all."""
    code = "import sys, pycl; print(*sys.modules)"
    loaded = set(python(code, tmp_path, PYTHONPATH=os.pathsep.join(filter(None, sys.path))).split())
    assert "pycl.engine" in loaded
    assert not loaded & {
        "pycl.backends.cpu",
        "pycl._C",
        "pycl.backends.reference",
        "matplotlib",
        "sklearn",
        "pandas",
        "torchvision",
    }
