# SPDX-License-Identifier: Apache-2.0
"""The hot loop of a kernel, in what the disassembler says of its machine code."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import triton

LINE = re.compile(r"\s*(?:/\*[0-9a-f]{4,}\*/|\.L_x_\d+:)")
BACK = re.compile(r"@!?U?P\d+ +BRA.*`\((\.L_x_\d+)\)")  # without a condition it returns from a slow path, far away
LOCAL = re.compile(r"\b(?:LDL|STL)\b")


class Loop(NamedTuple):
    """Instructions of a thread for each of its pairs."""

    slots: float  # all
    exponentials: float
    shuffles: float
    local: float = 0.0  # loads and stores of spilled registers


def disassemble(cubin: bytes) -> str:
    disassembler = triton.knobs.nvidia.nvdisasm.path
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        return subprocess.run([disassembler, "-c", file], capture_output=True, text=True, check=True).stdout


def loop_of(cubin: bytes, pairs: int) -> Loop | None:
    return loop_in(disassemble(cubin), pairs)


def loop_in(text: str, pairs: int) -> Loop | None:
    """The loop over full tiles of bounded logits, of a kernel whose threads have so many pairs of a tile each.

    Of the loops with an exponential for each pair it is the shortest, or one with fewer exponentials that is hardly
    longer. Where the kernel takes one tile and has no loop, it is a stretch between two labels; inside of loops stores
    under a condition have labels, too.
    """
    lines = [line for line in text.splitlines() if LINE.match(line)]
    labels = {line.strip().rstrip(":"): at for at, line in enumerate(lines) if line.startswith(".L_x_")}
    jumps = ((at, BACK.search(line)) for at, line in enumerate(lines))
    loops = [(labels[jump[1]], at) for at, jump in jumps if jump and labels[jump[1]] < at]
    stretches = itertools.pairwise([0, *labels.values(), len(lines) - 1])
    found = list(_counted(lines, loops, pairs)) or list(_counted(lines, stretches, pairs))
    shortest = min((loop.slots for loop in found), default=0.0)
    return min((loop for loop in found if loop.slots <= 1.1 * shortest), key=lambda loop: loop[1::-1], default=None)


def _counted(lines: list[str], ranges: Iterable[tuple[int, int]], pairs: int) -> Iterator[Loop]:
    for first, last in ranges:
        body = [line for line in lines[first : last + 1] if not line.startswith(".L_x_")]
        exponentials, shuffles = (sum(name in line for line in body) for name in ("MUFU.EX2", "SHFL"))
        if exponentials >= pairs:
            local = sum(LOCAL.search(line) is not None for line in body)
            yield Loop(len(body) / pairs, exponentials / pairs, shuffles / pairs, local / pairs)
