# SPDX-License-Identifier: Apache-2.0
"""The suite "losses", on a CPU."""

from __future__ import annotations

import torch

from .case import Case

LOSS_CASES = (
    Case("clip-d128", "clip", 8192, 128),
    Case("clip-d512", "clip", 8192, 512),
    Case("clip-d512-medium", "clip", 8192, 512, precision="medium"),
    Case("nt_xent-d128", "nt_xent", 8192, 128),
    Case("nt_xent-d512", "nt_xent", 8192, 512),
    Case("clip-d128-bf16", "clip", 8192, 128, torch.bfloat16),
    Case("clip-d512-bf16", "clip", 8192, 512, torch.bfloat16),
    Case("clip-d768", "clip", 4096, 768),
    Case("clip-2048", "clip", 2048, 512),
    Case("clip-1024", "clip", 1024, 512),
    Case("clip-512", "clip", 512, 512),
    Case("clip-128", "clip", 128, 512),
    Case("nt_xent-256", "nt_xent", 256, 128),
    Case("mv_dhel-v4", "mv_dhel", 4096, 128),
    Case("clip-65536", "clip", 65536, 128, measure="memory"),
    Case("clip-131072", "clip", 131072, 64, measure="memory"),
)
