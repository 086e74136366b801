# SPDX-License-Identifier: Apache-2.0
"""Builds pycl for several Pythons, runs its core tests with several torches: ``python tests/versions.py [PYTHON ...]``.

Without arguments each pair of ``VERSIONS`` gets an environment in build/versions, of some GB where torch's wheel brings
CUDA. Interpreters that are named have torch and what the tests need, and nothing is installed for them. Other options
are pytest's. Writes docs/versions.md; a pair that fails is in its table and makes the status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "versions"
PAGE = ROOT / "docs" / "versions.md"
VERSIONS = [("3.10", "2.10"), ("3.12", "2.11"), ("3.11", "2.13"), ("3.13", None)]  # None: the newest there is
NEEDS = ["numpy", "pytest", "pytest-xdist", "hypothesis", "expecttest", "scikit-build-core", "pybind11"]
# two minutes on one core; Triton's versions are those of `make test-all`
TESTS = [
    "autograd", "average", "bad_input", "cached", "cached_torch", "cpu_bindings", "cpu_layouts",
    "cpu_memory", "cpu_process", "doctor", "engine", "features", "group", "losses", "matrix", "modules", "sinkhorn",
    "swav", "wheel_pure",
]  # fmt: skip
FACTS = """
import json, platform, numpy, torch
from pycl.backends import cpu
print(json.dumps([platform.python_version(), torch.__version__, numpy.__version__, cpu.ISA]))
"""
COLUMNS = "Python | torch | NumPy | pybind11 | compiler | instruction set | passed | failed | skipped"
TEXT = """# Versions

What `make versions` found: each Python builds the compiled part from the sources, then the core tests run with its
torch ({tests} modules of `tests/`, without Triton, whose versions are those of `make test-all`).

"""


class Failure(Exception):
    """A step that ended with an error; its output is in the log."""


def run(log: Path, *command: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        start = file.tell()
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    said = log.read_bytes()[start:].decode(errors="replace")
    if done.returncode:
        raise Failure(f"{' '.join(command[:4])} ...: status {done.returncode}, see {log.relative_to(ROOT)}")
    return said


def interpreter(version: str) -> str | None:
    """A Python on the PATH, or one of pyenv's that no shell has chosen; its shims run only chosen ones."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [
        shutil.which(f"python{version}"),
        *map(str, sorted(versions.glob(f"{version}.*/bin/python"), reverse=True)),
    ]
    works = (path for path in found if path and not subprocess.run([path, "-V"], capture_output=True).returncode)
    return next(works, None)


def environments() -> Iterator[str]:
    """The interpreters of environments in build/versions, made where they are missing."""
    for version, torch in VERSIONS:
        home = FOLDER / f"python{version}-torch{torch or ''}"
        python = str(home / "bin" / "python")
        if not (home / "complete").exists():
            if (base := interpreter(version)) is None:
                raise Failure(f"no Python {version} on the PATH or among pyenv's versions")
            log = home.with_suffix(".log")
            run(log, base, "-m", "venv", "--clear", str(home))
            run(log, python, "-m", "pip", "install", "--quiet", f"torch=={torch}.*" if torch else "torch", *NEEDS)
            (home / "complete").touch()
        yield python


def row(python: str, log: Path, options: Sequence[str]) -> tuple[list[str], bool]:
    """One line of the table, and whether the tests passed."""
    site = log.with_suffix(".site")
    shutil.rmtree(site, ignore_errors=True)
    install = ("-m", "pip", "install", "--verbose", "--no-deps", "--target", str(site), ".")
    built = run(log, python, *install, PYCL_CPU="ON", PYCL_CUDA="OFF")
    compiler = re.findall(r"The CXX compiler identification is (.+)", built) or ["the one before"]
    pybind = re.findall(r"Found pybind11:.*found version \"([\d.]+)\"", built) or ["the one before"]
    of_build = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PYCL_TEST_REQUIRE": "cpu"}
    facts = json.loads(run(log, python, "-c", FACTS, **of_build).splitlines()[-1])
    files = [str(path) for name in TESTS for path in (ROOT / "tests").glob(f"*/test_{name}.py")]
    try:
        said, passed = run(log, python, "-m", "pytest", "-k", "not triton", *options, *files, **of_build), True
    except Failure as failure:
        print(failure)
        said, passed = log.read_text(errors="replace"), False
    counts = [
        (re.findall(rf"(\d+) {what}", said.splitlines()[-1]) or ["0"])[0] for what in ("passed", "failed", "skipped")
    ]
    return [*facts[:3], pybind[-1], compiler[-1], facts[3], *counts], passed and int(counts[0]) > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="*", help="interpreters to take instead")
    options, for_pytest = parser.parse_known_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows, good = [COLUMNS.split(" | "), ["---"] * 6 + ["---:"] * 3], True
    try:
        for index, python in enumerate(options.python or environments()):
            log = FOLDER / f"{index}.log"
            log.unlink(missing_ok=True)
            found, passed = row(python, log, for_pytest)
            rows.append(found)
            good = good and passed
            print(*found, sep=" | ", flush=True)
    except Failure as failure:
        print(failure)
        return 1
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    PAGE.write_text(TEXT.format(tests=len(TESTS)) + table + "\n", encoding="utf-8")
    return not good


if __name__ == "__main__":
    sys.exit(main())
