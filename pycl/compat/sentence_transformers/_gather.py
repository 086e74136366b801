# SPDX-License-Identifier: Apache-2.0
"""The candidates of all ranks: sentence-transformers' own collective, for batches of any size."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

import torch
from sentence_transformers.util import all_gather_with_grad, get_rank
from torch import Tensor

ORIGINALS = {"all_gather_with_grad": all_gather_with_grad, "get_rank": get_rank}


def replaced(library: type) -> str:
    """Why a loss that gathers must run the library's code, which calls what its module has under these names."""
    module = sys.modules[library.__module__]
    for name, original in ORIGINALS.items():
        if getattr(module, name, original) is not original:
            return f"another {name} in {module.__name__}"
    return ""


def gathered(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all ranks, whose gradients are those of the sum over the ranks; ``sizes`` are their numbers."""
    most = max(sizes)
    if min(sizes) == most:
        return cast("Tensor", all_gather_with_grad(x))
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    parts = all_gather_with_grad(padded).split(most)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])
