# SPDX-License-Identifier: Apache-2.0
"""The docstring of a loss as a module, made of that of its function: formula, arguments, what a call takes, errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from pycl import functional

LEARNABLE = "True makes the logarithm of the temperature a parameter, ``log_temperature`` [1]."
SECTION = re.compile(r"(Args|Attributes|Called with|Returns|Raises):\n")
ENTRY = re.compile(r"^    (\w[\w, ]*): ", re.MULTILINE)


class Composed:
    """The docstring of a class, put together when somebody looks at it: an import has no time for twelve of them."""

    def __init__(self, own: str) -> None:
        self.own = own

    def __get__(self, instance: object, module: Any) -> str:
        known = inspect.signature(module.function).parameters
        inputs = [name for name in without_self(module.forward).parameters if name in known]
        return of_module(module.function, self.own, inspect.signature(module).parameters, inputs)


def without_self(method: Callable[..., Any]) -> inspect.Signature:
    whole = inspect.signature(method)
    return whole.replace(parameters=list(whole.parameters.values())[1:])


def of_module(function: Callable[..., Any], own: str, arguments: Iterable[str], inputs: Iterable[str]) -> str:
    """The docstring of the module of a function.

    Args:
        function: a loss with a docstring.
        own: what the class says itself; arguments that the function does not have are described there.
        arguments: what the class is built with.
        inputs: what it is called with.
    """
    prose, sections = parts_of(inspect.getdoc(function) or "")
    said, more = parts_of(inspect.cleandoc(own))
    known = entries_of(sections.get("Args", ""))
    shared = entries_of(parts_of(inspect.getdoc(functional.Options) or "")[1]["Attributes"])
    everything = entries_of(more.get("Args", "")) | {"learnable_temperature": LEARNABLE} | shared | known
    before, after = prose[: len(prose) - 1], prose[-1:]  # the paper comes last
    chunks = [*before[:1], *said, *before[1:], _section("Args", arguments, everything)]
    chunks += [_section("Called with", inputs, everything)]
    chunks += [f"{name}:\n{sections[name]}" for name in ("Returns", "Raises") if name in sections]
    return "\n\n".join([*chunks, *after])


def parts_of(text: str) -> tuple[list[str], dict[str, str]]:
    """The paragraphs of a docstring outside of its sections, and the sections by their names."""
    prose: list[str] = []
    sections: dict[str, str] = {}
    for chunk in re.split(r"\n\n(?! )", text):
        if found := SECTION.match(chunk):
            sections[found[1]] = chunk[found.end() :]
        else:
            prose.append(chunk)
    return prose, sections


def entries_of(section: str) -> dict[str, str]:
    """What a section says of each name."""
    names, texts = ENTRY.findall(section), ENTRY.split(section)[2::2]
    return {name: text.strip("\n") for some, text in zip(names, texts, strict=True) for name in some.split(", ")}


def _section(title: str, names: Iterable[str], known: dict[str, str]) -> str:
    return f"{title}:\n" + "\n".join(f"    {name}: {known[name]}" for name in names)
