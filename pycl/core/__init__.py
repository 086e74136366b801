# SPDX-License-Identifier: Apache-2.0
"""The words that everything speaks: points, pair sets, problems and their gradients. Imports no other room."""

from __future__ import annotations
