# SPDX-License-Identifier: Apache-2.0
"""pytorch-metric-learning's losses: ``from pycl.compat.pml import losses`` for its own ``losses``."""

from __future__ import annotations

from . import losses

__all__ = ["losses"]
