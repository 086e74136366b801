# SPDX-License-Identifier: Apache-2.0
"""Sentence pairs: data and report."""

from __future__ import annotations
