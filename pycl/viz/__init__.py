# SPDX-License-Identifier: Apache-2.0
"""A run's measures, its log and its dashboard.

:mod:`pycl.viz.lightning` and :mod:`pycl.viz.transformers` have callbacks that write and draw the same. The package is
imported by its own name, ``import pycl.viz``; matplotlib is needed where something is drawn.
"""

from __future__ import annotations

from pycl.viz.drawing import dashboard
from pycl.viz.measures import measure
from pycl.viz.run_log import RunLog, read

__all__ = ["RunLog", "dashboard", "measure", "read"]
