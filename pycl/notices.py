# SPDX-License-Identifier: Apache-2.0
"""Warnings that are said once a process."""

from __future__ import annotations

import warnings

_said: set[str] = set()


def first_time(topic: str) -> bool:
    """Whether this is asked for the first time in the process."""
    if topic in _said:
        return False
    _said.add(topic)
    return True


def warn_once(topic: str, message: str) -> None:
    """A ``UserWarning`` the first time, whatever the filters make of repetitions and whatever numbers are in it."""
    if first_time(topic):
        warnings.warn(message, UserWarning, stacklevel=3)
