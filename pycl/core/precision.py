# SPDX-License-Identifier: Apache-2.0
"""What PyTorch is set to make float32 products of, by its former or by its newer switches.

``torch.get_float32_matmul_precision`` knows the former alone, and raises once one of the newer was set: so does
``TrainingArguments(tf32=True)`` of transformers. A former switch sets the newer ones too, so these tell both.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["highest", "high", "medium"]


def of_cpu() -> Precision:
    """``"medium"`` where PyTorch's own product may take bfloat16 values: where it has AMX, it does.

    Never ``"high"``: no CPU product of PyTorch is of tf32, so a switch that was set for a GPU changes none.
    """
    return "medium" if _switch("mkldnn") == "bf16" else "highest"


def of_cuda() -> Precision:
    """``"high"`` where products may be of tf32, ``"medium"`` where those of the CPU may be of bfloat16 besides."""
    if _switch("cuda") != "tf32":
        return "highest"
    return "medium" if _switch("mkldnn") == "bf16" else "high"


def _switch(backend: str) -> str:
    found: str = torch._C._get_fp32_precision_getter(backend, "matmul")  # a sixth of the time of the public attribute
    return found
