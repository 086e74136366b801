# SPDX-License-Identifier: Apache-2.0
"""The null driver refuses what a driver refuses, and programs for a GPU run to their end on the null GPU."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from null_gpu import library

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS, LONGS = ctypes.c_uint32, ctypes.c_uint64

if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")):
    pytest.skip("no C compiler for the null driver and for Triton's launchers", allow_module_level=True)


class Attribute(ctypes.Structure):
    _fields_ = (("id", WORDS), ("padding", WORDS), ("value", WORDS * 16))


class Launch(ctypes.Structure):
    _fields_ = (
        *(("grid", WORDS * 3), ("block", WORDS * 3), ("shared", WORDS), ("stream", ctypes.c_void_p)),
        *(("attributes", ctypes.POINTER(Attribute)), ("n_attributes", WORDS)),
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> tuple[library.Library, ctypes.CDLL]:
    path = library.build(tmp_path_factory.mktemp("null-gpu"))
    return library.Library(path), ctypes.CDLL(str(path))


@pytest.fixture
def function(driver: tuple[library.Library, ctypes.CDLL]) -> ctypes.c_void_p:
    found = ctypes.c_void_p()
    assert driver[1].cuModuleGetFunction(ctypes.byref(found), ctypes.c_void_p(1), b"kernel") == 0
    return found


def test_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = library.build(tmp_path)
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    assert library.build(tmp_path) == built
    os.utime(built, (0, 0))  # older than the source
    with pytest.raises(OSError, match="no-such-compiler"):
        library.build(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"grid": (1, 65535, 1)}, None),
        ({"grid": (0, 1, 1)}, "blocks 0, allowed 2147483647"),
        ({"grid": (1, 65536, 1)}, "blocks 65536, allowed 65535"),
        ({"block": (1025, 1, 1)}, "threads 1025, allowed 1024"),
        ({"shared": 49153}, "bytes of shared memory 49153, allowed 49152"),
        ({"grid": (12, 1, 1), "cluster": 8}, "blocks in clusters 12, allowed 8"),
        ({"grid": (16, 1, 1), "cluster": 8}, None),
        ({"grid": (16, 1, 1), "cluster": 16}, "blocks of a cluster 16, allowed 8"),
    ],
)
def test_launches(
    driver: tuple[library.Library, ctypes.CDLL],
    function: ctypes.c_void_p,
    change: dict[str, tuple[int, int, int] | int],
    reason: str | None,
) -> None:
    library_, functions = driver
    given = {"grid": (4, 1, 1), "block": (128, 1, 1), "shared": 0, "cluster": 0} | change
    launch = Launch(WORDS.__mul__(3)(*given["grid"]), WORDS.__mul__(3)(*given["block"]), given["shared"])
    if given["cluster"]:
        attribute = Attribute(4, 0, (WORDS * 16)(given["cluster"], 1, 1))
        launch.attributes, launch.n_attributes = ctypes.pointer(attribute), 1
    before = library_.launches, library_.refused
    status = functions.cuLaunchKernelEx(ctypes.byref(launch), function, ctypes.byref(function), None)
    made, refused = library_.launches - before[0], library_.refused - before[1]
    if reason is None:
        assert (status, made, refused) == (0, 1, 0)
        assert library_.kernels(before[0]) == {"kernel": 1}
    else:
        assert (status != 0, made, refused) == (True, 0, 1)
        assert library_.reason == f"the null driver refuses kernel: {reason}"


def test_shared_memory_is_asked_for_first(
    driver: tuple[library.Library, ctypes.CDLL], function: ctypes.c_void_p
) -> None:
    limit = 8  # MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert driver[1].cuFuncSetAttribute(function, limit, 232449) != 0
    assert driver[1].cuFuncSetAttribute(function, limit, 232448) == 0
    launch = Launch((WORDS * 3)(1, 1, 1), (WORDS * 3)(128, 1, 1), 232448)
    assert driver[1].cuLaunchKernelEx(ctypes.byref(launch), function, ctypes.byref(function), None) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"address": 8}, "address modulo 16 8"),
        ({"stride": 264}, "stride modulo 16 8"),
        ({"stride": 112}, "bytes of a row 128, allowed 112"),
        ({"box": (64, 257)}, "box 257, allowed 256"),
        ({"box": (4, 64)}, "bytes of a row of the box modulo 16 8"),
        ({"swizzle": 2}, "bytes of a row of the box 128, allowed 64"),
        ({"sizes": (64, 0)}, "size 0"),
    ],
)
def test_tensor_maps(
    driver: tuple[library.Library, ctypes.CDLL], change: dict[str, int | tuple[int, int]], reason: str | None
) -> None:
    bfloat16, given = 9, {"address": 1 << 12, "stride": 256, "sizes": (64, 100), "box": (64, 64), "swizzle": 3} | change
    sizes, box, steps = (LONGS * 2)(*given["sizes"]), (WORDS * 2)(*given["box"]), (WORDS * 2)(1, 1)
    before = driver[0].maps
    status = driver[1].cuTensorMapEncodeTiled(
        *(ctypes.c_void_p(1 << 12), bfloat16, 2, ctypes.c_void_p(given["address"]), sizes),
        *((LONGS * 1)(given["stride"]), box, steps, 0, given["swizzle"], 0, 0),
    )
    assert (status == 0, driver[0].maps - before) == (reason is None, int(reason is None))
    if reason is not None:
        assert driver[0].reason.startswith(f"the null driver refuses a tensor map: {reason}")


# ---- programs


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("triton")
    outside = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = outside | {"PYTHONPATH": str(ROOT / "tests")} | environment
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.thorough
def test_host_time_of_a_step() -> None:
    done = run("null_gpu.host_time", "sinkhorn-4096-d3000", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.startswith("loss ")
    loss, n, d, launches, each, together, *_ = row.split()
    assert (loss, n, d) == ("sinkhorn", "4096", "3000")
    kernels = sum(int(count) for count in re.findall(r"(\d+) [a-z]\w+(?:,|$)", row))
    assert int(launches) == kernels > 0
    assert float(each) * int(launches) == pytest.approx(float(together), rel=0.1)


def test_what_is_asked_of_the_null_gpu_in_one_line() -> None:
    late = run("null_gpu", "no_such_module", TRITON_INTERPRET="1")
    assert late.returncode == 1
    assert late.stderr == "null_gpu: the null GPU compiles kernels: unset TRITON_INTERPRET\n"
    none = run("null_gpu.host_time", "no-such-row")
    assert none.returncode == 2
    assert "error: no row matches; there are nt_xent-256-d256, " in none.stderr.splitlines()[-1]
