# SPDX-License-Identifier: Apache-2.0
"""SwAV as modules; they are part of :mod:`pycl.modules`."""

from __future__ import annotations

from pycl.modules.clustering import Prototypes, SwAVLoss

__all__ = ["Prototypes", "SwAVLoss"]
