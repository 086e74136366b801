# SPDX-License-Identifier: Apache-2.0
"""Graphs: data, losses, probes."""

from __future__ import annotations
