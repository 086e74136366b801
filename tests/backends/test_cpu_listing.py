# SPDX-License-Identifier: Apache-2.0
"""The machine code of the products' inner loops: loads and multiply-adds, one of each that is needed, nothing else.

A sum of such a loop that is kept in memory, or a broadcast that takes two instructions, costs a fifth of a step and
changes no result. So the loops are read in the listing of the compiled part that is installed.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from typing import NamedTuple

import pytest

from pycl.backends.registry import why_not

if reason := why_not("cpu", "cpu"):
    pytest.skip(reason, allow_module_level=True)
if platform.machine() not in ("x86_64", "AMD64"):
    pytest.skip("reads x86 instructions", allow_module_level=True)
if not shutil.which("objdump"):
    pytest.skip("needs objdump", allow_module_level=True)

from pycl.backends.compiled import extension

LINE = re.compile(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)")
LONGEST = 60  # instructions of a product's loop
MULTIPLY_ADD = re.compile(r"vfmadd\w+p[sd]|vdpbf16ps")


class Loop(NamedTuple):
    instructions: list[tuple[str, str]]  # name and operands, without the jump

    def names(self) -> Counter[str]:
        return Counter(name for name, _ in self.instructions)


@cache
def loops() -> list[Loop]:
    """The innermost loops of the library: what lies between a jump back and where it goes, without other jumps."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(extension().__file__)], capture_output=True, text=True, check=True
    ).stdout
    code = [(int(m[1], 16), m[2], m[3]) for m in map(LINE.match, listing.splitlines()) if m]
    places = {address: k for k, (address, _, _) in enumerate(code)}
    found = []
    for end, (address, name, operands) in enumerate(code):
        to = re.match(r"[0-9a-f]+", operands) if name.startswith("j") and name != "jmp" else None
        start = places.get(int(to[0], 16)) if to else None
        if start is None or not 0 < end - start <= LONGEST or code[start][0] >= address:
            continue
        body = [(name, operands) for _, name, operands in code[start:end]]
        if not any(name.startswith(("j", "call", "ret")) for name, _ in body):
            found.append(Loop(body))
    return found


def products(register: str, kind: str, multiply_adds: int) -> list[Loop]:
    """Loops of a register tile: that many multiply-adds into registers of their own, with broadcast operands."""
    found = []
    for loop in loops():
        sums = [operands.split(",")[-1] for name, operands in loop.instructions if re.fullmatch(kind, name)]
        own = len(sums) == len(set(sums)) == multiply_adds
        if own and all(register in each for each in sums) and any("broadcast" in name for name in loop.names()):
            found.append(loop)
    return found


@pytest.mark.parametrize(
    ("register", "kind", "rows", "vectors"),
    [
        ("ymm", r"vfmadd\w+ps", 6, 2),
        ("ymm", r"vfmadd\w+pd", 6, 2),
        ("zmm", r"vfmadd\w+ps", 8, 3),
        ("zmm", r"vfmadd\w+pd", 8, 3),
        ("zmm", r"vdpbf16ps", 8, 3),
    ],
)
def test_a_step_of_a_product(register: str, kind: str, rows: int, vectors: int) -> None:
    """``rows`` broadcasts from memory, ``vectors`` loads, their products, two pointers, a counter and its test."""
    found = products(register, kind, rows * vectors)
    assert found
    for loop in found:
        names = loop.names()
        assert sum(count for name, count in names.items() if MULTIPLY_ADD.fullmatch(name)) == rows * vectors
        broadcasts = [operands for name, operands in loop.instructions if "broadcast" in name]
        assert len(broadcasts) == rows
        assert all("(" in operands for operands in broadcasts), "a broadcast is one load"
        loads = [operands for name, operands in loop.instructions if name.startswith("vmov")]
        assert len(loads) == vectors
        assert all(operands.startswith(("(", "0x", "-0x")) for operands in loads), "no sum leaves its register"
        rest = names - Counter({name: n for name, n in names.items() if name.startswith("v")})
        assert sum(rest.values()) <= 5, rest
        assert set(rest) <= {"add", "sub", "cmp", "lea", "inc", "mov"}, rest
