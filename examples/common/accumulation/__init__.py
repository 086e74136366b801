# SPDX-License-Identifier: Apache-2.0
"""Accumulated gradients: two towers, and one step in the loops of training libraries."""

from __future__ import annotations
