# SPDX-License-Identifier: Apache-2.0
"""Whether a call is only executed, or somebody looks on who must see every operator and no value."""

from __future__ import annotations

import torch


def observed() -> bool:
    """torch.compile or torch.export, a transform of torch.func, FakeTensorMode, make_fx or another dispatch mode."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    )
