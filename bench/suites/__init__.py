# SPDX-License-Identifier: Apache-2.0
"""What is measured, a table of cases for each suite: one workload at one size, width and number format."""

from __future__ import annotations
