# SPDX-License-Identifier: Apache-2.0
"""Plant one fault at a time in a copy of the sources: does the selection that ``make test`` runs notice?

    python tests/planted [words of a fault ...]

Prints a line for each fault with the test that noticed. Exits with 1 where none did, where a fault's text is not in
its file once, or where a test that noticed fails on sound sources, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from faults import FAULTS, Fault

ROOT = Path(__file__).parent.parent.parent
PARTS = ("pycl", "triton_kernels", "bench", "csrc", "tests", "examples")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYCL_TEST_ALL", "PYCL_CPU_ISA")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYCL_TEST_REQUIRE": "cpu,triton"}
PYTEST = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "-rf", "--tb=no"]
SECONDS = 600
OBJECTS = {"bindings": "bindings.cpp", "dispatch": "cpu/dispatch.cpp", "generic": "cpu/isa_generic.cpp"}
OBJECTS |= {"amx_emulated": "cpu/isa_amx.cpp"}
OF_AMX = ("product_bf16.h", "amx.h")  # in no other of these objects


def copy_sources(to: Path) -> Path:
    for part in PARTS:
        shutil.copytree(ROOT / part, to / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def compile_object(tree: Path, name: str) -> None:
    """One without the instruction sets of this machine: a fault in a header is in every one of them."""
    flags = ["-std=c++17", "-O1", "-fPIC", "-w", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden"]
    flags += ["-DPYCL_AMX_EMULATED"] if name == "amx_emulated" else []
    # torch brings the headers of pybind11
    include = [f"-I{Path(torch.__file__).parent / 'include'}", f"-I{sysconfig.get_path('include')}"]
    source, out = tree / "csrc" / OBJECTS[name], tree / f"{name}.o"
    subprocess.run(["g++", *flags, *include, "-c", str(source), "-o", str(out)], check=True)


def link(tree: Path) -> None:
    objects = [str(tree / f"{name}.o") for name in OBJECTS]
    module = tree / "pycl" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", *objects, "-o", str(module), "-lpthread", "-ldl"], check=True)


def object_of(file: Path) -> str | None:
    """The one that a fault in this file is compiled into."""
    if file.name in OF_AMX:
        return "amx_emulated"
    return {"csrc/cpu": "generic", "csrc": "bindings"}.get(str(file.parent))


def plant(fault: Fault, sound: Path, tree: Path) -> None:
    shutil.copytree(sound, tree, symlinks=True)
    path = tree / fault.file
    path.write_text(path.read_text().replace(fault.old, fault.new))
    if changed := object_of(Path(fault.file)):
        compile_object(tree, changed)
        link(tree)


def files_of(fault: Fault, tree: Path) -> list[str]:
    """The test modules that have to notice."""
    return [str(path) for name in fault.tests.split() for path in (tree / "tests").glob(f"*/{name}.py")]


def run_tests(tree: Path, *arguments: str) -> tuple[int, str]:
    """The exit status of pytest, 1 where tests fail, and its output."""
    command = [*PYTEST, *arguments]
    try:
        done = subprocess.run(command, cwd=tree, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return -1, f"no end after {SECONDS} s"
    return done.returncode, done.stdout + done.stderr


def who_notices(fault: Fault, sound: Path, tree: Path) -> str | None:
    """The test that does, after a line of the table."""
    start = time.monotonic()
    plant(fault, sound, tree)
    status, said = run_tests(tree, "-x", *files_of(fault, tree))
    shutil.rmtree(tree)
    failed = re.search(r"^FAILED (\S.*?)(?: - .*)?$", said, re.MULTILINE)
    found = failed[1] if status == 1 and failed else None
    result = found or ("SURVIVED" if status == 0 else f"no test could run: {said.strip().splitlines()[-1]}")
    print(f"| {fault.what} | {fault.file} | {result} | {time.monotonic() - start:.0f} s |", flush=True)
    return found


def main(words: list[str]) -> int | str:
    chosen = [fault for fault in FAULTS if all(word in f"{fault.what} {fault.file}" for word in words)]
    for fault in chosen:
        if (times := (ROOT / fault.file).read_text().count(fault.old)) != 1:
            return f"{fault.file} has {fault.old!r} {times} times; {fault.what!r} needs it once"
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        sound = copy_sources(Path(folder) / "sound")
        list(pool.map(lambda name: compile_object(sound, name), OBJECTS))
        link(sound)
        print("| fault | file | noticed by | time |\n|---|---|---|---|")
        trees = (Path(folder) / str(number) for number in range(len(chosen)))
        found = list(pool.map(lambda fault, tree: who_notices(fault, sound, tree), chosen, trees))
        noticed = sorted({test for test in found if test})
        status, said = run_tests(sound, *noticed) if noticed else (0, "")
    print(f"{len(chosen) - found.count(None)} of {len(chosen)} faults were noticed.")
    if status:
        print(f"On sound sources these tests fail, too:\n{said}")
    return int(status != 0 or None in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
