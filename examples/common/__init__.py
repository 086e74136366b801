# SPDX-License-Identifier: Apache-2.0
"""What the examples share: the training loop with its ranks, checkpoints and logs; a folder for each kind of data."""

from __future__ import annotations
