# SPDX-License-Identifier: Apache-2.0
"""The suite "sinkhorn", on a CPU."""

from __future__ import annotations

import torch

from .case import Case

SINKHORN_CASES = (
    Case("sinkhorn", "sinkhorn", 4096, 3000),
    Case("sinkhorn-out", "sinkhorn, out=", 4096, 3000),
    Case("sinkhorn-bf16", "sinkhorn", 4096, 3000, torch.bfloat16),
    Case("sinkhorn-fp16", "sinkhorn", 4096, 3000, torch.float16),
    Case("sinkhorn-256", "sinkhorn", 256, 3000),
    Case("sinkhorn-64", "sinkhorn", 64, 512),
    Case("sinkhorn-k16384", "sinkhorn", 2048, 16384),
    Case("potentials", "potentials", 4096, 128),
    Case("potentials-swept", "potentials", 8192, 128),  # more scores than a CPU keeps
    Case("swav", "swav", 1024, 128),
    Case("sinkhorn-memory", "sinkhorn", 4096, 3000, measure="memory"),
    Case("swav-memory", "swav", 1024, 128, measure="memory"),
)
