# SPDX-License-Identifier: Apache-2.0
"""What mkdocstrings is told of pycl: where public names are, and docstrings as Markdown.

Docstrings have roles (``:func:`pycl.engine.pair_stats```), formulas in indented blocks after two colons, and TeX in
``math``. Roles become links to what has a place on the site, and code otherwise; a role that names nothing is a
warning, which fails the build.
"""

# mypy: disallow-subclassing-any=False
# griffe is not installed where mypy runs

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import griffe
from latex2mathml.converter import convert

import pycl
from pycl.modules.docstrings import entries_of, parts_of
from pycl.tools.site.pages import packages

log = logging.getLogger("mkdocs.pycl")

ROLE = re.compile(r":(func|class|meth|mod|attr|data|exc):`([^`]+)`")
TEX = re.compile(r":math:`([^`]+)`")
FORMULA = re.compile(r"^( *)\.\. math:: (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
TABLE = re.compile(r"^( *)=+  =+\n((?:\1\S.*\n)+)\1=+  =+$", re.MULTILINE)
LITERAL = re.compile(r"::(?=\n\n)")


class PublicNames(griffe.Extension):
    """Moves what is public to its public name, and turns every docstring into Markdown."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if pkg.name != "pycl":
            return
        public = dict(_public(pkg))
        links = {found.path: name for name, found in public.items()} | {name: name for name in _modules()}
        for found in _objects(pkg):
            _compose(found)
            if found.docstring:
                found.docstring.value = _markdown(found.docstring.value, found, links)
        for name, found in public.items():
            package, _, short = name.rpartition(".")
            parent = pkg[package.removeprefix("pycl").lstrip(".")] if package != "pycl" else pkg
            parent.members[short] = found
            found.parent = parent


def _modules() -> list[str]:
    return [*packages(), "pycl.functional"]


def _public(pkg: griffe.Module) -> Iterator[tuple[str, Any]]:
    """The objects that have a place on the site, by their public names."""
    listed = packages() | {"pycl.functional": pycl.functional.__all__}
    listed["pycl"] = (*listed["pycl"], *pycl.modules.__all__)
    for package, names in listed.items():
        module = pkg[package.removeprefix("pycl.")] if package != "pycl" else pkg
        for name in names:
            if (found := _definition(module, name)) is not None:
                yield f"{package}.{name}", found


def _definition(module: Any, name: str) -> Any:
    """Where a name of a package is defined: a function may have its module's name, or be made by ``together``."""
    found = module.members.get(name)
    if found is None:
        return None
    if found.is_alias:
        return found.final_target
    if found.is_module:
        return found.members[name]
    if found.is_attribute and (made := re.fullmatch(r"together\((\w+)\.(\w+)\)", str(found.value))):
        return module.members[made[1]].members[made[2]]
    return found


def _objects(found: Any) -> Iterator[Any]:
    yield found
    for member in list(found.members.values()):
        if not member.is_alias:
            yield from _objects(member)


def _compose(found: Any) -> None:
    """A module of a loss: what is not in the docstring of its function, which stands above it on its page."""
    if found.is_class and found.path.startswith("pycl.modules.") and found.docstring:
        running = getattr(pycl, found.name, None)
        if running is not None and hasattr(running, "function"):
            prose, sections = parts_of(inspect.getdoc(running) or "")
            known = parts_of(inspect.getdoc(running.function) or "")[0]
            inputs = "\n".join(f"* `{x}`: {_one_line(y)}" for x, y in entries_of(sections["Called with"]).items())
            more = [f"Args:\n{sections['Args']}", f"**Called with:**\n\n{inputs}"]
            found.docstring.value = "\n\n".join([*(part for part in prose if part not in known), *more])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str, found: Any, links: Mapping[str, str]) -> str:
    text = TABLE.sub(_table, text)
    text = FORMULA.sub(lambda m: f"{m[1]}{_formula(m[2], 'block')}", text)
    text = TEX.sub(lambda m: _formula(m[1], "inline"), text)
    text = ROLE.sub(lambda m: _link(m[2], found, links), text)
    return LITERAL.sub(":", text)


def _formula(tex: str, display: str) -> str:
    return str(convert(" ".join(tex.split()), display=display))


def _table(rows: re.Match[str]) -> str:
    """A table of two columns between lines of equals signs."""
    lines = [re.split(r"  +", line.strip(), maxsplit=1) for line in rows[2].splitlines()]
    body = [f"{rows[1]}| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
    return "\n".join([f"{rows[1]}| | |", f"{rows[1]}| --- | --- |", *body])


def _link(name: str, found: Any, links: Mapping[str, str]) -> str:
    short = name.startswith("~")
    name = name.lstrip("~").removesuffix("()")
    shown = name.rpartition(".")[2] if short else name
    path = _resolved(name, found)
    if path is None:
        log.warning("%s: the docstring names %s, which there is not", found.path, name)
    for end in range(len(parts := (path or "").split(".")), 0, -1):  # a method is where its class is
        if public := links.get(".".join(parts[:end])):
            return f"[`{shown}`][{'.'.join([public, *parts[end:]])}]" if _deep(public, parts[end:]) else f"`{shown}`"
    return f"`{shown}`"


def _deep(public: str, rest: list[str]) -> bool:
    """Whether what is ``rest`` of a public thing is documented with it: members of a class are, of a module not."""
    return not rest or public not in _modules()


def _resolved(name: str, found: Any) -> str | None:
    """The path of what a docstring names: from where it stands, or from the top; a foreign one as it is."""
    first, _, rest = name.partition(".")
    if first not in ("pycl", found.package.name):
        for scope in (found, found.parent, found.package["functional"]):  # modules of losses speak of functions
            try:
                path = scope.resolve(first)
            except (griffe.NameResolutionError, AttributeError):
                continue
            return _existing(f"{path}.{rest}" if rest else path, found)
        return None if not rest else name  # torch.nn.Module
    return _existing(name, found)


def _existing(path: str, found: Any) -> str | None:
    """The path of the definition; None where pycl has nothing of this name."""
    if not path.startswith("pycl"):
        return path
    at: Any = found.package
    for part in path.split(".")[1:]:
        if at.is_alias:
            at = at.final_target
        if part not in at.members:
            return path if at.is_class or at.is_attribute else None
        at = _definition(at, part) if at.is_module and not at.members[part].is_module else at.members[part]
    if at.is_module and at.path not in _modules() and at.name in at.members:
        at = at.members[at.name]  # a function of a module of its name
    return str(at.path)
