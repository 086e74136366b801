# SPDX-License-Identifier: Apache-2.0
"""The instruction sets of the CPU kernels; to be imported only where the compiled part is there."""

from __future__ import annotations

from helpers.global_settings import during
from pycl.backends import cpu

ISAS = cpu._C.supported_isas()
instruction_set = during(lambda: cpu.ISA, cpu._C.select_isa)
