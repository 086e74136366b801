# SPDX-License-Identifier: Apache-2.0
"""Generated signals: data, views, encoders."""

from __future__ import annotations
