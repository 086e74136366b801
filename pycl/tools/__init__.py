# SPDX-License-Identifier: Apache-2.0
"""What kernels are compiled to, how tiles are found: programs that nobody needs to run a loss."""

from __future__ import annotations
