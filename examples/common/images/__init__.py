# SPDX-License-Identifier: Apache-2.0
"""Images: where they come from, views, encoders, and how good their features are."""

from __future__ import annotations
