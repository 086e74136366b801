# SPDX-License-Identifier: Apache-2.0
"""Everything of ``sentence_transformers.sparse_encoder``, with pycl's ``losses`` among its names."""

from __future__ import annotations

from pycl.compat._peer import forward_names
from pycl.compat.sentence_transformers.sparse_encoder import losses

__all__ = ["losses"]
__getattr__, __dir__ = forward_names(__name__, "sentence_transformers.sparse_encoder", "sentence-transformers")
