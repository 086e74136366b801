# SPDX-License-Identifier: Apache-2.0
"""The first lines of a process that measures the pycl of a folder: ``python start.py FOLDER BENCH DESCRIPTOR``.

It is run by its path, since pycl is what it has yet to import: the library of ``FOLDER`` under the benchmarks of
``BENCH``, for two builds are compared by the same work. Where these benchmarks want something that the library does not
have, its own workloads stand in, and the code that measures remains that of ``BENCH``.
"""

from __future__ import annotations

import importlib
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

WORK = "pycl.bench.measure.turns"


def main(folder: str, bench: str, descriptor: str) -> None:
    """Say why the workloads are the folder's own, or ``None``; then serve calls."""
    sys.path[0] = folder  # in place of the folder of this file
    pipe = Connection(int(descriptor))
    try:
        own = load(Path(bench))
    except Exception as error:  # a library may fail to import in any way
        pipe.send(("raised", in_a_line(error)))
        return
    pipe.send(("answer", own))
    worker = importlib.import_module("pycl.bench.measure.worker")
    worker.serve(pipe, worker.prepare)


def load(bench: Path) -> str | None:
    """Import the library and benchmarks; returns why the workloads are the library's own, or ``None``."""
    importlib.import_module("pycl")
    _put("pycl.bench", bench)
    try:
        importlib.import_module(WORK)
    except Exception as error:  # what is missing shows as an error of an import, an attribute, an argument
        reason = in_a_line(error)
    else:
        return None
    for name in [name for name in sys.modules if f"{name}.".startswith("pycl.bench.")]:
        del sys.modules[name]
    _put("pycl.bench.measure", bench / "measure")
    try:
        importlib.import_module(WORK)
    except Exception as error:
        own = in_a_line(error)
        raise ImportError(
            f"these benchmarks want what it lacks ({reason}), and its own are too different ({own})"
        ) from None
    return reason


def _put(name: str, folder: Path) -> None:
    """Have a package and what is below it be imported from another folder."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


def in_a_line(error: Exception) -> str:
    """The error without the paths that an import error ends with."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line.partition(' (/')[0][:200]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
