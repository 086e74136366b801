# SPDX-License-Identifier: Apache-2.0
"""The null driver, a ``libcuda.so.1`` that runs nothing: built with the C compiler that Triton needs anyway."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).with_name("driver.c")
NAME = "libcuda.so.1"  # also what the library calls itself: a second one of that name is never looked for
FOLDER = SOURCE.parents[2] / "build" / "null-gpu"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden")
MOST_NAMES = 1 << 14  # of launches that the library remembers


def build(folder: Path = FOLDER) -> Path:
    """The library, built where it is missing or older than its source; raises ``RuntimeError`` with one line."""
    library = folder / NAME
    if library.exists() and library.stat().st_mtime >= SOURCE.stat().st_mtime:
        return library
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("the null driver needs a C compiler (cc or $CC)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:  # moved when done: others may be about to load it
        target = Path(new) / NAME
        command = [compiler, *FLAGS, f"-Wl,-soname,{NAME}", str(SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler} cannot build {SOURCE.name}: {done.stderr.strip()}")
        target.replace(library)
    return library


class Library:
    """What the driver was asked to do."""

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for count in ("launches", "maps", "refused"):
            getattr(self._functions, f"null_{count}").restype = ctypes.c_long
        for text in ("reason", "name"):
            getattr(self._functions, f"null_{text}").restype = ctypes.c_char_p
        self._functions.null_name.argtypes = (ctypes.c_long,)

    @property
    def launches(self) -> int:
        return int(self._functions.null_launches())

    @property
    def maps(self) -> int:
        """Tensor maps that were encoded."""
        return int(self._functions.null_maps())

    @property
    def refused(self) -> int:
        return int(self._functions.null_refused())

    @property
    def reason(self) -> str:
        """Of the last refusal."""
        return str(self._functions.null_reason().decode())

    def kernels(self, since: int) -> Counter[str]:
        """Names of the launches from number ``since`` on."""
        if self.launches - since > MOST_NAMES:
            raise ValueError(f"the last {MOST_NAMES} launches are remembered, asked for {self.launches - since}")
        return Counter(self._functions.null_name(k).decode() for k in range(since, self.launches))


@functools.cache
def load(folder: Path = FOLDER) -> Library:
    """Built and loaded; Triton, which asks for the name, then finds this one."""
    path = build(folder)
    os.environ["TRITON_LIBCUDA_PATH"] = str(path.parent)
    return Library(path)
