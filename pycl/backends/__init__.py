# SPDX-License-Identifier: Apache-2.0
"""Who computes: a module for each backend, and the registry that chooses among them."""

from __future__ import annotations

from pycl.backends.registry import BackendUnavailable, installed

__all__ = ["BackendUnavailable", "installed"]
