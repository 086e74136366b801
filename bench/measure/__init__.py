# SPDX-License-Identifier: Apache-2.0
"""How a case is measured: the answer is checked, then everyone is timed in turn, on a CPU or on a GPU."""

from __future__ import annotations
