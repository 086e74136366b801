# SPDX-License-Identifier: Apache-2.0
"""Parts of a library's loss that a user may have put something else in the place of."""

from __future__ import annotations

from typing import Any


def is_plain(module: Any, kind: type) -> bool:
    """Whether calling a module runs the forward of just that class: no subclass, no hook, none of its own."""
    return type(module) is kind and "forward" not in vars(module) and not is_hooked(module)


def is_hooked(module: Any) -> bool:
    """Whether a call of a module runs more than its forward."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    return bool(before or after or module._backward_pre_hooks or module._backward_hooks)
