# SPDX-License-Identifier: Apache-2.0
"""Batches larger than memory: the loss of all of a batch, the encoder on a part of it at a time."""

from __future__ import annotations

from pycl.grad_cache.step import cached_step

__all__ = ["cached_step"]
