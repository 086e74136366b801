# SPDX-License-Identifier: Apache-2.0
"""Images and their captions, and modalities: data, losses, retrieval."""

from __future__ import annotations
