# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face transformers with and without ``pycl.compat.transformers.patch()``."""

from __future__ import annotations
