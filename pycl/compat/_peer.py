# SPDX-License-Identifier: Apache-2.0
"""The library a drop-in stands for: its classes where it is installed, and the way back to its own code."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

_warned: set[str] = set()


class FallbackWarning(UserWarning):
    """A drop-in ran the library's own code, because pycl has no fused form of what was asked for."""


def find_peer(module: str) -> ModuleType | None:
    """The module of the library, or None where it is not installed; one that fails to import counts as absent."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.import_module(module)
    except Exception as error:  # a foreign package may fail in any way
        another = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or " ")
        if not another:  # package of that name, which has no such module
            warn_once(module, f"{module} is installed but does not import ({error}); pycl's losses stand alone")
        return None


def forward_names(
    module: str, library: str, distribution: str, install: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a drop-in: what it has not, the library has, and ``import *`` brings both.

    Called below ``__all__``, which gets the library's public names. The library's modules are found with the drop-in's
    names in them; under its last name the library is the drop-in itself, as in ``from pycl.compat.lightly import loss``
    for ``from lightly import loss``. ``install`` is what pip takes where that is not the distribution's name.
    """
    drop_in, theirs = sys.modules[module], find_peer(library)
    public: list[str] = vars(drop_in)["__all__"]
    ours = list(public)
    itself = library.rpartition(".")[2]
    names = sorted({itself, *(_public(theirs) if theirs else ())} - {*public})
    public += names

    def get(name: str) -> Any:
        if name not in names and (theirs is None or name.startswith("_") or not hasattr(theirs, name)):
            way_out = "" if theirs else f": pip install {install or distribution}"
            raise AttributeError(
                f"module {module!r} has no attribute {name!r}, nor is there one of an installed {distribution}{way_out}"
            )
        if name == itself:
            return drop_in
        found = getattr(theirs, name)
        return (
            _overlaid(found, library, {n: getattr(drop_in, n) for n in ours})
            if isinstance(found, ModuleType)
            else found
        )

    return get, lambda: sorted({*vars(drop_in), *names})


def _public(module: ModuleType) -> list[str]:
    """What ``from module import *`` brings."""
    return list(getattr(module, "__all__", None) or (name for name in vars(module) if not name.startswith("_")))


def _overlaid(module: ModuleType, library: str, ours: Mapping[str, Any]) -> ModuleType:
    """A module of the library with the drop-in's names in it; any other module as it is."""
    if not module.__name__.startswith(f"{library}."):
        return module
    found = ModuleType(module.__name__, module.__doc__)
    vars(found).update(vars(module))
    vars(found).update({name: x for name, x in ours.items() if _stands_for(x, getattr(module, name, None))})
    return found


def _stands_for(ours: Any, theirs: Any) -> bool:
    """Whether these are one loss: lightly has two functions ``sinkhorn``, which take different arguments."""
    if inspect.isfunction(ours) and inspect.isfunction(theirs):
        return list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    return theirs is not None


class Hooks:
    """Methods that the library's code calls and a subclass, an instance or a patch may replace, as they were at first.

    ``base`` is the library's class, or its stand-in where that has them.
    """

    def __init__(self, base: type, *names: str) -> None:
        self.originals = {name: getattr(base, name) for name in names if hasattr(base, name)}

    @classmethod
    def of_all(cls, base: type) -> Hooks:
        """All methods of that class but ``forward``, whatever the library's version has."""
        names = [n for n, f in vars(base).items() if inspect.isfunction(f) and not n.startswith("__")]
        return cls(base, *(n for n in names if n != "forward"))

    def replaced_in(self, loss: Any) -> str:
        """Why a loss must run the library's code, or nothing."""
        for name, original in self.originals.items():
            if getattr(loss, name) != original.__get__(loss):  # __func__ is another object while dynamo traces
                return f"{type(loss).__name__} has a {name} of its own"
        return ""


def known(base: type, **options: Any) -> dict[str, Any]:
    """Those of the options that the constructor of a library's class takes: not all versions have them."""
    taken = inspect.signature(base.__init__).parameters  # type: ignore[misc]  # of the class as it is
    return {name: value for name, value in options.items() if name in taken}


@torch.compiler.assume_constant_result  # said once, while torch.compile looks, and no break in the graph
def fall_back(loss: str, why: str) -> None:
    """Say once that ``loss`` runs the library's own code and why; with ``PYCL_STRICT=1`` raise RuntimeError.

    What follows a colon in ``why``, a shape say, is the call's: another one is not said again.
    """
    message = f"{loss} runs the library's own code: {why}"
    if os.environ.get("PYCL_STRICT") == "1":
        raise RuntimeError(f"{message} (an error because PYCL_STRICT=1)")
    warn_once(f"{loss} {why.partition(':')[0]}", message)


def warn_once(topic: str, message: str) -> None:
    """A ``FallbackWarning`` that does not come back at every step: the first message of a topic."""
    if topic not in _warned:
        _warned.add(topic)
        warnings.warn(message, FallbackWarning, stacklevel=4)
