# SPDX-License-Identifier: Apache-2.0
"""Which assembler Triton takes for an architecture, and what is said of it."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

DOUBTED = 90  # the architecture with instructions that read registers while the program goes on
SOUND = (13, 3)


class Assembler(NamedTuple):
    path: str
    version: str  # "12.8.93"
    variable: str  # of the environment, that names another one


def assembler_of(architecture: int) -> Assembler:
    """The ptxas that Triton, which it imports, will run for sm_``architecture``."""
    from triton import knobs
    from triton.backends.nvidia.compiler import get_ptxas

    found = get_ptxas(architecture)
    said = subprocess.run([found.path, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\bV(\d+(?:\.\d+)+)", said)
    other = getattr(knobs.nvidia, "ptxas_blackwell", None)  # for sm_90, too, from Triton 3.9 on
    variable = "TRITON_PTXAS_BLACKWELL_PATH" if found == other != knobs.nvidia.ptxas else "TRITON_PTXAS_PATH"
    return Assembler(found.path, version[1] if version else str(found.version), variable)


def doubt(architecture: int, found: Assembler) -> str | None:
    """What public reports hold against this assembler for this architecture, or ``None``."""
    if architecture != DOUBTED or tuple(int(part) for part in found.version.split(".")[:2]) >= SOUND:
        return None
    return (
        f"ptxas {found.version} may make wrong code for compute capability 9.0. Public reports: 12.8.93 gives wrong "
        "numbers or illegal accesses in kernels with several products, 13.1.80 does not (triton-lang/triton issues "
        "10486, 10573, 11366; fla-org/flash-linear-attention 1262); before 13.3, registers that a product still reads "
        "may be written (triton-lang/triton 11781). pycl's kernels are of these kinds; no run of them has confirmed or "
        f"cleared it. {found.variable} can name a newer ptxas, such as that of pip install nvidia-cuda-nvcc"
    )
