# SPDX-License-Identifier: Apache-2.0
"""The operators ``torch.ops.pycl.*``: their schemas, their gradient rules, and what they are on many ranks."""

from __future__ import annotations
