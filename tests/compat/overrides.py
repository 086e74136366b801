# SPDX-License-Identifier: Apache-2.0
"""What a user may set or override in a library's loss, in another form: the drop-in must give what the library does.

Every variant turns a result x into ``1.5 x + 0.1``, so that a value says whether the variant was asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


def changed(value: Any) -> Any:
    """Other floating-point tensors and numbers, also within lists, tuples, dictionaries and iterators."""
    if isinstance(value, Tensor):
        return 1.5 * value + 0.1 if value.is_floating_point() else value
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return 1.5 * value + 0.1
    if isinstance(value, dict):
        return {key: changed(entry) for key, entry in value.items()}
    if isinstance(value, Iterator):
        return map(changed, value)
    if isinstance(value, (list, tuple)):
        entries = [changed(entry) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)
    return value


def methods(kind: type, library: str) -> list[str]:
    """Names of the methods and properties that the library's classes among the bases have, but for special ones."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        if base.__module__.startswith(f"{library}."):
            for name, value in vars(base).items():
                if not name.startswith("__") and (callable(value) or isinstance(value, (property, staticmethod))):
                    found[name] = None
    return list(found)


def overridden(kind: type, name: str) -> type:
    """A subclass whose method, static method or property of that name changes what it gets from its base."""
    original = inspect.getattr_static(kind, name)

    def method(self: Any, *args: Any, **options: Any) -> Any:
        return changed(getattr(super(made, self), name)(*args, **options))

    def prop(self: Any) -> Any:
        value = getattr(super(made, self), name)
        return changed_call(value) if callable(value) and not isinstance(value, nn.Module) else changed(value)

    def static(*args: Any, **options: Any) -> Any:
        return changed(getattr(kind, name)(*args, **options))

    if isinstance(original, property):
        made = type(kind.__name__, (kind,), {name: property(prop, original.fset)})
    elif isinstance(original, staticmethod):
        made = type(kind.__name__, (kind,), {name: staticmethod(static)})
    else:
        made = type(kind.__name__, (kind,), {name: method})
    return made


def changed_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that changes what another returns."""

    def call(*args: Any, **options: Any) -> Any:
        return changed(function(*args, **options))

    return call


def hooked(module: nn.Module) -> None:
    """Change what a module returns, by a forward hook."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        return changed(output)

    module.register_forward_hook(hook)


def attributes(thing: Any) -> list[str]:
    """Names of the attributes that ``vary`` has another form of: numbers, functions and modules."""
    own = {name: value for name, value in vars(thing).items() if not name.startswith("_")}
    own.pop("training", None)
    settable = [name for name, value in own.items() if isinstance(value, (bool, float)) or callable(value)]
    return settable + list(getattr(thing, "_modules", {}))


def vary(thing: Any, name: str) -> None:
    """Give an attribute another value, a function another result, or a module a hook."""
    value = getattr(thing, name)
    if isinstance(value, nn.Module):
        hooked(value)
    elif callable(value):
        setattr(thing, name, changed_call(value))
    else:
        setattr(thing, name, changed(value))
