# SPDX-License-Identifier: Apache-2.0
"""Parts of a library's loss that a user may have put something else in the place of."""

from __future__ import annotations

from typing import Any

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(module: Any, kind: type) -> bool:
    """Whether calling a module runs the forward of just that class: no subclass, no hook, none of its own."""
    own = vars(module)
    return type(module) is kind and "forward" not in own and not any(own[name] for name in HOOKS)
