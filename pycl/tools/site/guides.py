# SPDX-License-Identifier: Apache-2.0
"""The code of a page: its fenced blocks, and running those of Python."""

from __future__ import annotations

import doctest
import importlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pycl

FENCE = re.compile(r"^(```+)([^\n]*)\n(.*?)^\1 *$", re.DOTALL | re.MULTILINE)


class BrokenPage(Exception):
    """A page that says what does not hold; the message is one line with its name."""


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int  # of its first line
    kind: str  # "python", "python no-run", "python examples/...", "bash", ...
    code: str

    def runs(self) -> bool:
        return self.kind.split(" ")[0] == "python" and "no-run" not in self.kind.split()

    def compiled(self, name: str) -> Any:
        lines = "\n" * (self.line - 1) + self.code  # a traceback names the line of the page
        return compile(lines, name, "exec", dont_inherit=True)


def blocks(text: str, *kinds: str) -> list[Block]:
    """The blocks whose first word is among the kinds; all without any."""
    found = [Block(text.count("\n", 0, m.start(3)) + 1, m[2].strip(), m[3]) for m in FENCE.finditer(text)]
    return [block for block in found if not kinds or block.kind.split(" ")[0] in kinds]


def outside_blocks(text: str) -> Iterator[tuple[bool, str]]:
    """The pieces of a page in their order, each with whether it is outside of fenced blocks."""
    at = 0
    for found in FENCE.finditer(text):
        yield True, text[at : found.start()]
        yield False, found[0]
        at = found.end()
    yield True, text[at:]


def run(text: str, name: str) -> None:
    """Run all Python blocks of a page in one namespace, one after the other."""
    namespace: dict[str, Any] = {"__name__": "guide"}
    for block in blocks(text):
        if block.runs():
            exec(block.compiled(name), namespace)


def check(text: str, name: str, runs: bool) -> None:
    """Raise :class:`BrokenPage` where a Python block has no syntax, or with ``runs`` where it raises anything."""
    try:
        for block in blocks(text, "python"):
            block.compiled(name)
        if runs:
            run(text, name)
    except SyntaxError as error:
        raise BrokenPage(f"{name}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        said = " ".join(str(error).split())
        raise BrokenPage(f"{name}:{lines[-1] if lines else 1}: {type(error).__name__}: {said}") from None


def doctests() -> list[str]:
    """The modules whose docstrings have examples that do not hold, a line each."""
    package, broken = Path(pycl.__file__).parent, []
    for path in sorted(package.glob("**/*.py")):
        if not re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE):
            continue
        name = ".".join(("pycl", *path.relative_to(package).with_suffix("").parts))
        found = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
        if found.failed:
            broken.append(f"{name}: {found.failed} of {found.attempted} examples in its docstrings do not hold")
    return broken


def pages_of(root: Path) -> dict[str, str]:
    """The Markdown files of ``docs`` by their path from there."""
    docs = root / "docs"
    return {str(path.relative_to(docs)): path.read_text(encoding="utf-8") for path in sorted(docs.glob("**/*.md"))}
