# SPDX-License-Identifier: Apache-2.0
"""Which room imports which: a folder of the package takes from those below it, never from above or beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# from the ground up; rooms of one floor do not know each other
FLOORS = (
    ("core", "triton_kernels"),
    ("distributed",),
    ("backends",),
    ("ops",),
    ("engine",),
    ("functional",),
    ("objectives", "grad_cache"),
    ("modules", "compat", "metrics", "testing"),
    ("clustering", "viz"),
    ("",),  # the package itself: what `import pycl` offers
    ("tools",),  # programs that nobody needs to run a loss
    ("doctor",),
    ("bench",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [path for path in sorted(ROOT.glob("pycl/**/*.py")) if path.is_file()]
FILES += [path for part in ("bench", "triton_kernels") for path in sorted((ROOT / "pycl" / part).glob("**/*.py"))]
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="runs in a checkout")


def module_of(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def room_of(module: list[str]) -> str:
    """``python -m pycl`` is the package itself."""
    return module[1] if len(module) > 1 and module[1] != "__main__" else ""


def imported(path: Path) -> Iterator[list[str]]:
    """The modules of pycl that a file imports, wherever in it."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            # `from pycl import functional` is an import of that room
            names = [[*base, alias.name] if base == ["pycl"] and alias.name in FLOOR else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name[0] == "pycl")


def test_every_folder_is_a_room() -> None:
    assert {room_of(module_of(path)) for path in FILES} == set(FLOOR)


def test_rooms_import_from_below() -> None:
    upward = [
        f"{path.relative_to(ROOT)} imports {'.'.join(name)}"
        for path in FILES
        for name in imported(path)
        if room_of(name) != room_of(module_of(path)) and FLOOR[room_of(name)] >= FLOOR[room_of(module_of(path))]
    ]
    assert not upward
