# SPDX-License-Identifier: Apache-2.0
"""Warnings that are said once a process."""

from __future__ import annotations

import sys
import warnings

_said: set[str] = set()


def first_time(topic: str) -> bool:
    """Whether this is asked for the first time in the process."""
    if topic in _said:
        return False
    _said.add(topic)
    return True


def warn_once(topic: str, message: str) -> None:
    """A ``UserWarning`` the first time, at the line that called pycl, whatever the filters make of repetitions."""
    if first_time(topic):
        frame, level = sys._getframe(1), 2
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("pycl."):
            frame, level = frame.f_back, level + 1
        warnings.warn(message, UserWarning, stacklevel=level)
