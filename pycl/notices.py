# SPDX-License-Identifier: Apache-2.0
"""Warnings that are said once a process."""

from __future__ import annotations

import warnings

_said: set[str] = set()


def warn_once(topic: str, message: str) -> None:
    """A ``UserWarning`` the first time, whatever the filters make of repetitions and whatever numbers are in it."""
    if topic not in _said:
        _said.add(topic)
        warnings.warn(message, UserWarning, stacklevel=3)
