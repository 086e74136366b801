# SPDX-License-Identifier: Apache-2.0
"""Whole training steps: encoders, the loss, their gradients, an optimizer's update."""

from __future__ import annotations
