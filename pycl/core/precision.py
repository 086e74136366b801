# SPDX-License-Identifier: Apache-2.0
"""The precision of float32 products that PyTorch is set to.

PyTorch has former switches and newer ones. ``torch.get_float32_matmul_precision`` knows the former alone, and raises
once a newer one was set, for example by ``TrainingArguments(tf32=True)`` of transformers. A former switch sets the
newer ones, too. So the newer ones are read here.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["highest", "high", "medium"]


def of_cpu() -> Precision:
    """``"medium"`` if PyTorch's own products on a CPU may take bfloat16 values; with AMX they do.

    Never ``"high"``: PyTorch has no tf32 product on a CPU, so a switch that was set for a GPU changes nothing here.
    """
    return "medium" if _switch("mkldnn") == "bf16" else "highest"


def of_cuda() -> Precision:
    """``"high"`` if products may take tf32 values, ``"medium"`` if products on a CPU may take bfloat16 values, too."""
    if _switch("cuda") != "tf32":
        return "highest"
    return "medium" if _switch("mkldnn") == "bf16" else "high"


def _switch(backend: str) -> str:
    found: str = torch._C._get_fp32_precision_getter(backend, "matmul")  # a sixth of the time of the public attribute
    return found
