# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend."""

from __future__ import annotations

from .backends import BackendUnavailable

raise BackendUnavailable("backend='cuda' is not available: it was not built")
