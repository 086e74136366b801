# SPDX-License-Identifier: Apache-2.0
"""Something to do with a module once it is imported, which for a model of transformers may be late or never."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class AfterImport(MetaPathFinder):
    """Calls ``then(module)`` for every module of ``names`` right after its code has run, while this is installed."""

    def __init__(self, then: Callable[[ModuleType], None]) -> None:
        self.names: set[str] = set()
        self.then = then

    def install(self, names: Sequence[str]) -> None:
        """For these modules too; those that are imported already come at once."""
        self.names.update(names)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        for module in [sys.modules[name] for name in names if name in sys.modules]:
            self.then(module)

    def remove(self) -> None:
        self.names.clear()
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader: Any) -> None:
        """The loader is this module's alone, and is as it was once it has run the module."""

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            loader.exec_module(module)
            if module.__name__ in self.names:
                self.then(module)

        loader.exec_module = exec_module
