# SPDX-License-Identifier: Apache-2.0
"""What launches the kernels of ``triton_kernels/``."""

from __future__ import annotations
