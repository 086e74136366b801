# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the CUDA kernels, without a GPU: ``python csrc/cuda/report.py [--markdown FILE]``.

Registers and spills are the assembler's own words. The exit status is 1 where a register spills or does not fit.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent / "sinkhorn.cu"
ARCHITECTURES = ("80", "90a", "100")
THREADS = 512
REGISTERS = 65536  # of a multiprocessor
FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra")


class Compiled(NamedTuple):
    architecture: str
    scores: str
    vector: int
    staged: bool
    registers: int
    spills: int  # bytes stored and loaded
    static_shared: int

    def faults(self) -> list[str]:
        faults = ["registers spill"] if self.spills else []
        return faults + (["a block does not fit"] if self.registers * THREADS > REGISTERS else [])


def nvcc(*arguments: str) -> str:
    """What it says; raises RuntimeError with it where it fails or warns."""
    done = subprocess.run(["nvcc", *FLAGS, *arguments], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode or "warning" in said:
        raise RuntimeError(f"nvcc {' '.join(arguments)}\n{said}")
    return said


def compile_for(architecture: str) -> list[Compiled]:
    with tempfile.TemporaryDirectory() as folder:
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        said = nvcc("-cubin", target, "-Xptxas=-v", str(SOURCE), "-o", f"{folder}/kernels.cubin")
    found = [_parse(architecture, part) for part in said.split("Compiling entry function")[1:]]
    return sorted(found, key=lambda c: (c.scores, not c.staged, -c.vector))


def _parse(architecture: str, said: str) -> Compiled:
    """The kernel's name is mangled: ``sinkhorn``, then the type of the scores, the vector and where tiles are."""
    name = re.search(r"8sinkhornI(f|d|13__nv_bfloat16|6__half)Li(\d+)ELb([01])E", said)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    if not (name and spills and registers):
        raise RuntimeError(f"nvcc says of a kernel\n{said}")
    scores = {"f": "float32", "d": "float64", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}[name[1]]
    shared = re.search(r"(\d+) bytes smem", said)
    return Compiled(
        *(architecture, scores, int(name[2]), name[3] == "1"),
        *(int(registers[1]), int(spills[1]) + int(spills[2]), int(shared[1]) if shared else 0),
    )


def compile_all(architectures: tuple[str, ...] = ARCHITECTURES) -> list[Compiled]:
    with ThreadPoolExecutor(2) as pool:
        return [compiled for found in pool.map(compile_for, architectures) for compiled in found]


def table(compiled: list[Compiled]) -> str:
    """In Markdown, a line for each kernel, with the registers of all architectures side by side."""
    architectures = list(dict.fromkeys(c.architecture for c in compiled))
    by_kernel: dict[tuple[str, str, str], dict[str, Compiled]] = {}
    for c in compiled:
        key = c.scores, str(c.vector), "shared memory" if c.staged else "global memory"
        by_kernel.setdefault(key, {})[c.architecture] = c
    head = "scores", "vector", "tiles in", *(f"registers, sm_{a}" for a in architectures), "spilled bytes", "fault"
    rows = [head, ("---",) * len(head)]
    for key, found in by_kernel.items():
        faults = dict.fromkeys(f"sm_{c.architecture}: {fault}" for c in found.values() for fault in c.faults())
        registers = [str(found[a].registers) for a in architectures]
        rows.append((*key, *registers, str(sum(c.spills for c in found.values())), "; ".join(faults)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(file: Path, text: str) -> None:
    """Put the table between ``<!-- cuda -->`` and ``<!-- /cuda -->``."""
    before, begin, rest = file.read_text(encoding="utf-8").partition("<!-- cuda -->\n")
    _, end, after = rest.partition("<!-- /cuda -->")
    if not (begin and end):
        raise SystemExit(f"{file} has no <!-- cuda --> with its <!-- /cuda -->")
    file.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python csrc/cuda/report.py", description=__doc__)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table between its markers")
    asked = parser.parse_args(arguments)
    if not shutil.which("nvcc"):
        parser.error("there is no nvcc on the PATH")
    compiled = compile_all()
    print(table(compiled))
    if asked.markdown:
        write(asked.markdown, table(compiled))
    return int(any(c.faults() for c in compiled))


if __name__ == "__main__":
    sys.exit(main())
