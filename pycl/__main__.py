# SPDX-License-Identifier: Apache-2.0
"""What there is: ``python -m pycl``. Its commands are modules of their own, such as ``python -m pycl.doctor``."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import pkgutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pycl
from pycl import compat, engine, functional, modules, objectives

WIDTH = 100
COMMANDS = ("doctor", "bench", "bench.dropins", "testing", "viz", "tools.triton_report", "tools.triton_tune")
FAMILIES: tuple[tuple[str, ModuleType], ...] = (
    ("pycl.functional: losses as functions", functional),
    ("pycl: losses as modules", modules),
    ("pycl.objectives: objectives of papers", objectives),
    ("pycl.engine: reductions, for a loss of your own", engine),
)


def summary(command: str) -> str:
    """The first line of a command's docstring up to the command itself; the file is read and not run."""
    name = f"pycl.{command}"
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"this installation has no {name}")
    said = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return said.splitlines()[0].split(": ``")[0].rstrip(".")


def public(module: ModuleType) -> list[str]:
    """The functions and classes that a module offers; ``functional.Options`` is a type of arguments."""
    return [name for name in module.__all__ if callable(getattr(module, name)) and name != "Options"]


def drop_ins() -> list[str]:
    """The modules of ``pycl.compat`` that stand for a library, which need not be installed."""
    return [name for _, name, _ in pkgutil.iter_modules(compat.__path__) if not name.startswith("_")]


def lines() -> Iterator[str]:
    """All that is printed."""
    yield f"pycl {pycl.__version__} in {Path(pycl.__file__).parent}"
    yield ""
    width = max(map(len, COMMANDS)) + len("python -m pycl.  ")
    for command in COMMANDS:
        line = f"{f'python -m pycl.{command}':{width}}{summary(command)}"
        yield textwrap.fill(line, WIDTH, subsequent_indent=" " * width)
    listed = [(title, public(module)) for title, module in FAMILIES]
    for title, names in (*listed, ("pycl.compat: other libraries' losses under their own names", drop_ins())):
        yield ""
        yield title
        yield textwrap.fill(", ".join(names), WIDTH, initial_indent="  ", subsequent_indent="  ")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pycl",
        description="Lists the commands, losses and drop-ins that there are; takes no arguments.",
        epilog="Each command has its own --help: python -m pycl.doctor --help",
    )
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"it takes no arguments, got {' '.join(unknown)}; a command is a module: python -m pycl.doctor")
    print(*lines(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
