# SPDX-License-Identifier: Apache-2.0
"""Whether the kernels run in Triton's interpreter: it is decided where they are defined."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)  # $TRITON_INTERPRET
EMULATED = tl.constexpr(INTERPRETED)  # the same for kernels
