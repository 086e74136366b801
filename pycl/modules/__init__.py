# SPDX-License-Identifier: Apache-2.0
"""The losses as modules."""

from __future__ import annotations

from pycl.modules.clustering import Prototypes, SwAVLoss
from pycl.modules.losses import *
from pycl.modules.losses import __all__ as _losses
from pycl.modules.queue import FeatureQueue

__all__ = [*_losses, "FeatureQueue", "Prototypes", "SwAVLoss"]
