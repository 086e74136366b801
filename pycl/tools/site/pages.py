# SPDX-License-Identifier: Apache-2.0
"""The pages that are written from the code: one for each function of ``pycl.functional``, one for each package."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pycl
from pycl import functional
from pycl.compat._explain import DROP_INS
from pycl.testing.table import LOSSES, LossRow, make_views
from pycl.tools.site import guides
from pycl.tools.site.drawing import figure, legend
from pycl.tools.site.links import ROOT_PAGES, outside, rewritten, source_name, source_page
from pycl.tools.site.notebooks import page_of_notebook
from pycl.tools.site.pairs import Picture, picture_of

GUIDES = {  # of functions whose use needs more than their docstring
    "swav": "clustering.md",
    "sinkhorn": "clustering.md",
    "sinkhorn_potentials": "clustering.md",
    "dino_codes": "clustering.md",
    "multimodal": "losses.md#modalities",
    "similarity": "losses.md#similarities-and-measures",
    "similarity_topk": "losses.md#similarities-and-measures",
    "similarity_histogram": "losses.md#similarities-and-measures",
}
PACKAGES = {  # and what is documented there beside their __all__
    "pycl": ("FeatureQueue", "Prototypes", "BackendUnavailable", "set_workspace"),
    "pycl.engine": (),
    "pycl.objectives": (),
    "pycl.distributed": (),
    "pycl.grad_cache": (),
    "pycl.metrics": (),
    "pycl.viz": (),
    "pycl.viz.lightning": ("ContrastiveCallback",),
    "pycl.viz.transformers": ("ContrastiveCallback",),
    "pycl.testing": (),
    "pycl.compat": (),
} | {drop_in.module: drop_in.fused for drop_in in DROP_INS}


def generated(root: Path) -> dict[str, str]:
    """All generated pages by their path from ``docs``."""
    pages = {f"loss/{name}.md": loss_page(name, root) for name in functions()}
    pages |= {f"api/{package}.md": package_page(package) for package in packages()}
    pages |= {"loss/index.md": losses_index(), "api/index.md": api_index()}
    texts = {file: (page, (root / file).read_text(encoding="utf-8")) for file, page in ROOT_PAGES.items()}
    for notebook in sorted((root / "docs").glob("**/*.ipynb")):
        page = notebook.relative_to(root / "docs").with_suffix(".md")
        texts[str(notebook.relative_to(root))] = str(page), page_of_notebook(notebook)
    pages |= {page: rewritten(text, page, file) for file, (page, text) in texts.items()}
    everything = {file: text for file, (_, text) in texts.items()}
    everything |= {f"docs/{page}": text for page, text in guides.pages_of(root).items()}
    linked = {file for source, text in everything.items() for file in outside(text, source) if (root / file).exists()}
    return pages | {source_name(file): source_page(root, file) for file in sorted(linked)}


def functions() -> list[str]:
    return [name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))]


def module_of(name: str) -> str | None:
    """The class in ``pycl`` that is the module of a function."""
    for module in pycl.modules.__all__:
        if getattr(getattr(pycl, module), "function", None) is getattr(functional, name):
            return module
    return None


# ---- losses


def loss_page(name: str, root: Path) -> str:
    """Code, pictures, the function, its module and the conventions of a loss."""
    module = module_of(name)
    rows = [row for row in LOSSES.values() if row.function is getattr(functional, name)]
    parts = [f"# {name}", *_code(name, module, rows), *_pictures(rows)]
    parts += ["## Function", f"::: pycl.functional.{name}"]
    if module:
        parts += ["## Module", f"::: pycl.{module}"]
    if said := conventions(root).get(name):
        parts += ["## Where codes differ", *said, "[All conventions](../losses.md#conventions)."]
    if guide := GUIDES.get(name):
        parts += ["## Read on", f"[The guide](../{guide}) has examples."]
    return "\n\n".join(parts) + "\n"


def _summary(function: Callable[..., Any]) -> str:
    text = inspect.getdoc(function) or ""
    return re.sub(r":\w+:(?=`)", "", " ".join(text.partition("\n\n")[0].split()).replace("``", "`"))


def _code(name: str, module: str | None, rows: list[LossRow]) -> Iterator[str]:
    """A block that runs: inputs of the right shapes, the call, and the module's."""
    if not rows:
        return
    row = rows[0]
    leaves = row.inputs_of(make_views(2, 64, 32), torch.arange(64) // 2)
    given, _ = row.arguments_of(*leaves)
    lines = ["import torch", "import pycl", ""]
    parameters = inspect.signature(row.function).parameters
    names = list(parameters)[: len(given)]
    lines += [f"{argument} = {_made(x, row)}" for argument, x in zip(names, given, strict=True)]
    options = {
        k: v for k, v in {**row.scalars, **row.options}.items() if parameters[k].default is inspect.Parameter.empty
    }
    inputs = ", ".join([*names, *(f"{k}={v!r}" for k, v in options.items())])
    lines.append(f"loss = pycl.functional.{name}({inputs})")
    if module:
        lines.append(f"loss = pycl.{module}()({inputs})   # the same")
    lines.append("loss.backward()")
    yield "```python\n" + "\n".join(lines) + "\n```"


def _made(x: Tensor, row: LossRow) -> str:
    shape = ", ".join(map(str, x.shape))
    if not x.is_floating_point():
        return f"torch.arange({shape}) // 2"
    drawn = f"torch.randn({shape}, requires_grad=True)"
    return drawn if row.cosine else f"torch.nn.functional.normalize({drawn}, dim=-1)"


def _pictures(rows: list[LossRow]) -> Iterator[str]:
    """A picture for every form, those that look alike once."""
    forms: dict[str, list[Picture]] = {}
    for picture in filter(None, (_picture(row.name) for row in rows)):
        forms.setdefault(repr((picture.anchors, picture.cells)), []).append(picture)
    if not forms:
        return
    pictures = [picture for alike in forms.values() for picture in alike]
    named = {k: said for picture in reversed(pictures) for k, said in picture.named.items()}
    names = ", ".join(named[k] for k in dict.fromkeys(k for picture in pictures for k in picture.named))
    yield "## Which pairs count"
    yield f"A row for each anchor, a column for each candidate, drawn from a run of the loss: {names}."
    yield legend(pictures)
    figures = (figure(alike[0], _caption(alike, len(forms) > 1)) for alike in forms.values())
    yield f'<div class="pairs-figures">{"".join(figures)}</div>'
    calls = list(dict.fromkeys(call for picture in pictures for call in picture.calls))
    if calls:
        yield "What the loss asks of the [engine](../your-own-loss.md#three-lines) for it:"
        yield "\n".join(f"* {call}" for call in calls)


@cache
def _picture(name: str) -> Picture | None:
    return picture_of(LOSSES[name])


def _caption(pictures: list[Picture], several: bool) -> str:
    said = ["; or ".join(dict.fromkeys(picture.form for picture in pictures))] if several else []
    if labels := pictures[0].labels:
        said.append(f"labels {', '.join(map(str, labels))}")
    return "; ".join(said)


def with_links(text: str, page: str) -> str:
    """The table of docs/losses.md with a link from each function to its page, which GitHub does not have."""
    if page != "losses.md":
        return text
    before, heading, table = text.partition("## What is there")
    table, after = table[: (end := table.index("\n## "))], table[end:]
    names = "|".join(functions())
    return before + heading + re.sub(rf"`({names})`", r"[`\1`](loss/\1.md)", table) + after


def conventions(root: Path) -> dict[str, list[str]]:
    """What docs/losses.md says of the conventions of each function."""
    text = (root / "docs" / "losses.md").read_text(encoding="utf-8")
    section = text.partition("\n## Conventions\n")[2].partition("\n## ")[0]
    found: dict[str, list[str]] = {}
    for names, said in re.findall(r"^\| (.*?) \| (.*) \|$", section, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            found.setdefault(name, []).append(f"{names}: {said}")
    return found


def losses_index() -> str:
    rows = ["| function | module | what it is |", "| --- | --- | --- |"]
    for name in functions():
        module = f"[`{module}`]({name}.md#module)" if (module := module_of(name)) else ""
        rows.append(f"| [`{name}`]({name}.md) | {module} | {_summary(getattr(functional, name))} |")
    text = "Each has its formula, a picture of the pairs that count, its arguments, and where codes differ."
    return f"# Every loss\n\n{text} [Losses](../losses.md) compares them.\n\n" + "\n".join(rows) + _shared()


def _shared() -> str:
    return "\n\n## What they share\n\n::: pycl.functional\n    options:\n      members:\n      - Options\n"


# ---- packages


@cache
def packages() -> dict[str, tuple[str, ...]]:
    """The public names of each package that has a page."""
    return {package: more or tuple(_own_names(importlib.import_module(package))) for package, more in PACKAGES.items()}


def _own_names(package: Any) -> list[str]:
    """Without functions of ``pycl.functional`` under a second address: a thing has one place."""
    return [name for name in package.__all__ if getattr(package, name) is not getattr(functional, name, None)]


def package_page(package: str) -> str:
    members = "".join(f"\n      - {name}" for name in packages()[package])
    return f"# {package}\n\n::: {package}\n    options:\n      members:{members}\n"


def api_index() -> str:
    alone = {drop_in.module for drop_in in DROP_INS}  # which names these have depends on the library that is installed
    lines = [
        f"* [`{package}`]({package}.md): "
        + ", ".join(f"`{x}`" if package in alone else f"[`{x}`][{package}.{x}]" for x in names)
        for package, names in packages().items()
    ]
    first = "* [`pycl.functional`](../loss/index.md) and the modules of the losses: a page for each loss"
    return "# API\n\n" + "\n".join([first, *lines]) + "\n"
