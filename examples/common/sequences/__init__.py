# SPDX-License-Identifier: Apache-2.0
"""Sequences of items: data, encoder, ranking."""

from __future__ import annotations
