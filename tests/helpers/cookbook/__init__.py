# SPDX-License-Identifier: Apache-2.0
"""The recipes of docs/cookbook as functions, and the dense form and inputs of each."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from helpers.cookbook import clusters, contrast, labels, limits, metric, retrieval
from helpers.cookbook.case import Inputs

FOLDER = Path(__file__).parent.parent.parent.parent / "docs" / "cookbook"
FORMS = {
    "contrast": contrast,
    "labels": labels,
    "metric": metric,
    "retrieval": retrieval,
    "clusters": clusters,
    "limits": limits,
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^### (\w+)$", re.MULTILINE)

FORMULA = re.compile(r"^`[^`\n]+`", re.MULTILINE)
ROW = re.compile(r"^\| (.+?) \| (.+?) \| (\w+) \|$", re.MULTILINE)
LINK = re.compile(r"\[`(\w+)`\]\((\w+)\.md#(\w+)\)")


class Row(NamedTuple):
    """A line of the table of losses."""

    loss: str
    take: str
    memory: str


class Recipe(NamedTuple):
    """A function of a page, and what it is compared with."""

    name: str
    page: str
    loss: Callable[..., Any]
    formula: Callable[..., Any]
    make: Inputs


def text(page: str) -> str:
    return (FOLDER / f"{page}.md").read_text(encoding="utf-8")


def bodies(page: str) -> dict[str, str]:
    """What stands below each heading that names a recipe."""
    _, *parts = HEADING.split(text(page))
    return {name: body.split("\n## ")[0] for name, body in zip(parts[::2], parts[1::2], strict=True)}


def sections(page: str) -> dict[str, list[str]]:
    """The headings of a page that name a recipe, and the public functions that the blocks below each define."""
    found = {}
    for heading, body in bodies(page).items():
        nodes = [node for code in BLOCK.findall(body) for node in ast.parse(code).body]
        names = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
        found[heading] = [name for name in names if not name.startswith("_")]
    return found


def table() -> list[Row]:
    """Of the page's table of losses, without its head."""
    _, lines, _ = re.split("<!-- /?losses -->", text("README"))
    return [Row(*row) for row in ROW.findall(lines)][1:]


def memory() -> dict[str, str]:
    """What the table says of each recipe."""
    return {link[1]: row.memory for row in table() if (link := LINK.fullmatch(row.take))}


@cache
def namespace(page: str) -> dict[str, Any]:
    """What the code of a page leaves behind."""
    found: dict[str, Any] = {"__name__": page}
    for code in BLOCK.findall(text(page)):
        exec(compile(code, f"{page}.md", "exec", dont_inherit=True), found)
    return found


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes that have a dense form, by name."""
    return {
        name: Recipe(name, page, namespace(page)[name], getattr(forms, name), make)
        for page, forms in FORMS.items()
        for name, make in forms.INPUTS.items()
        if name in namespace(page)
    }
