# SPDX-License-Identifier: Apache-2.0
"""Which pytorch-metric-learning is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util


def check_version() -> None:
    """Refuse a version with other classes, values and defaults under the same names; nothing is imported for that."""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return
    try:
        version = importlib.metadata.version("pytorch-metric-learning")
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        version = str(getattr(importlib.import_module("pytorch_metric_learning"), "__version__", "unknown"))
    if version.partition(".")[0] != "2":
        raise ImportError(
            f"pycl.compat.pml stands for pytorch-metric-learning 2.x, installed is {version}, whose losses differ: "
            'pip install "pytorch-metric-learning>=2.9,<3"'
        )
