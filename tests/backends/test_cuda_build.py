# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the CUDA kernels, for GPUs that are not here, and what the library shows to the outside."""

from __future__ import annotations

import ctypes
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from pycl.backends import compiled, registry
from pycl.backends.cuda_library import PyclDevice, PyclSinkhorn, PyclSinkhornPlan

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "csrc" / "cuda"
INTERFACE = {"pycl_cuda_check", "pycl_cuda_device", "pycl_cuda_message", "pycl_sinkhorn_plan", "pycl_sinkhorn_run"}
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="runs in a checkout")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    if not shutil.which("nvcc"):
        pytest.skip("there is no nvcc on the PATH")
    return runpy.run_path(str(FOLDER / "report.py"), run_name="report")


@pytest.mark.thorough  # half a minute of nvcc
def test_every_architecture_compiles_without_spills(report: dict[str, Any]) -> None:
    compiled = report["compile_all"]()
    print(report["table"](compiled))
    assert {c.architecture for c in compiled} == {"80", "90a", "100"}
    assert len(compiled) == 3 * 12  # four dtypes; staged, from global memory in vectors and one by one
    assert not [c for c in compiled if c.faults()]
    assert not [c for c in compiled if c.static_shared]  # plans count on all of it


@pytest.mark.thorough
def test_later_gpus_get_ptx_with_clusters(report: dict[str, Any], tmp_path: Path) -> None:
    report["nvcc"]("-ptx", "-arch=compute_90", str(FOLDER / "sinkhorn.cu"), "-o", str(tmp_path / "kernels.ptx"))
    text = (tmp_path / "kernels.ptx").read_text()
    assert ".target sm_90\n" in text
    assert {"barrier.cluster.arrive", "mapa", "cp.async", "ex2.approx.ftz.f32"} <= set(
        re.findall(r"barrier\.cluster\.arrive|\bmapa|cp\.async|ex2\.approx\.ftz\.f32", text)
    )
    assert not re.findall(r"\b(?:atom|red)\.[\w.]*f(?:16|32|64)", text)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The installed one, or where the sources run as they are one for a single architecture."""
    try:
        return compiled.library("libpycl_cuda.so")
    except ImportError:
        if not shutil.which("nvcc"):
            pytest.skip("libpycl_cuda.so is not built and there is no nvcc")
    path = tmp_path_factory.mktemp("cuda") / "libpycl_cuda.so"
    report = runpy.run_path(str(FOLDER / "report.py"), run_name="report")
    flags = "-gencode=arch=compute_80,code=sm_80", "-cudart=static", "-Xlinker=--exclude-libs,ALL", "-shared"
    report["nvcc"](*flags, str(FOLDER / "sinkhorn.cu"), "-o", str(path))
    return str(path)


def symbols(library: str, *flags: str) -> list[str]:
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    said = subprocess.run(["nm", "-DC", *flags, library], capture_output=True, text=True, check=True).stdout
    return [line.split(maxsplit=2 - ("U" in flags))[-1] for line in said.splitlines()]


def test_the_library_exports_its_interface_alone(library: str) -> None:
    assert set(symbols(library, "--defined-only")) == INTERFACE


def test_the_library_needs_no_symbol_of_torch_nor_a_cuda_library(library: str) -> None:
    needed = symbols(library, "--undefined-only")
    assert needed
    assert not [name for name in needed if re.search(r"at::|c10|torch|\bcuda|\bcu[A-Z]", name)]


def test_the_library_answers_without_a_gpu(library: str) -> None:
    functions = ctypes.CDLL(library)
    functions.pycl_cuda_message.restype = ctypes.c_char_p
    assert functions.pycl_cuda_check() == 0
    assert b"cooperative" in functions.pycl_cuda_message(-2)
    assert b"plan" in functions.pycl_cuda_message(-1)
    assert functions.pycl_cuda_message(2) == b"out of memory"


def test_structures_are_those_of_the_header(tmp_path: Path) -> None:
    """Sizes, offsets and names in the order of the header, by the compiler."""
    compiler = shutil.which("g++") or pytest.skip("there is no g++")
    structures = {"PyclSinkhorn": PyclSinkhorn, "PyclDevice": PyclDevice, "PyclSinkhornPlan": PyclSinkhornPlan}
    checks = []
    for name, structure in structures.items():
        checks.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(structure)});")
        for field, *_ in structure._fields_:
            at = getattr(structure, field)
            checks.append(f"static_assert(offsetof({name}, {field}) == {at.offset});")
            checks.append(f"static_assert(sizeof({name}::{field}) == {at.size});")
    source = tmp_path / "structures.cpp"
    source.write_text("\n".join(["#include <cstddef>", '#include "sinkhorn.h"', *checks]))
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{FOLDER}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(
        registry.BackendUnavailable, match=r"needs compute capability 8\.0 or higher, Tesla T4 has 7\.5"
    ):
        runpy.run_module("pycl.backends.cuda")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking by name says how to get it."""

    def missing(name: str) -> str:
        raise ImportError(f"{name} was not built")

    monkeypatch.setattr(compiled, "library", missing)
    with pytest.raises(registry.BackendUnavailable, match=r"libpycl_cuda\.so was not built.*pip install.*nvcc"):
        runpy.run_module("pycl.backends.cuda")
