# SPDX-License-Identifier: Apache-2.0
"""The first quarter of an hour on a GPU: ``make gpu-cache`` where there is none, ``make gpu-first`` where there is."""

from __future__ import annotations
