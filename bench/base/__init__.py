# SPDX-License-Identifier: Apache-2.0
"""Two commits side by side: another one is built, and both take turns in processes of their own."""

from __future__ import annotations
