# SPDX-License-Identifier: Apache-2.0
"""What MkDocs calls while it builds: generated pages, links that leave ``docs``, and what a star in the nav lists."""

from __future__ import annotations

import fnmatch
import logging
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pycl.tools.site import guides, links, pages

log = logging.getLogger("mkdocs.pycl")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and write out the nav."""
    root = Path(config.config_file_path).parent
    written = guides.pages_of(root)
    made = pages.generated(root)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for name, others in shared_addresses(files).items():
        log.warning("%s: %s have one address: rename all but one", name, " and ".join(others))
    names = [*written, *(name for name in made if not name.startswith("source/"))]
    config.nav = listed(config.nav or [], names)
    return files


def shared_addresses(files: Files) -> dict[str, list[str]]:
    """Pages that would be written to one file, as a.md and a/index.md are."""
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(file.dest_uri, []).append(file.src_uri)
    return {address: names for address, names in found.items() if len(names) > 1}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links and blocks of a page as the site needs them; a block without syntax fails the build."""
    name = page.file.src_uri
    try:
        guides.check(markdown, f"docs/{name}", runs=False)
    except guides.BrokenPage as error:
        log.warning("%s", error)
    if not page.file.generated_by:
        markdown = pages.with_links(links.rewritten(markdown, name, f"docs/{name}"), name)
    return "".join(piece if prose else plain(piece) for prose, piece in guides.outside_blocks(markdown))


def plain(block: str) -> str:
    """A fenced block with its language alone: what else its first line says is for those who run it."""
    first, newline, rest = block.partition("\n")
    return first.split(" ")[0] + newline + rest


def listed(nav: list[Any], names: list[str]) -> list[Any]:
    """The nav with every ``folder/*`` replaced by the pages there are; an entry with none is left out."""
    found = []
    for entry in nav:
        title, value = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(value, list):
            found.append({title: listed(value, names)})
        elif "*" not in value:
            found.append(entry)
        elif there := sorted(fnmatch.filter(names, value), key=_order):
            found.append({title: there} if len(there) > 1 else {title: there[0]})
    return found


def _order(name: str) -> tuple[bool, str]:
    return Path(name).stem not in ("index", "README"), name.removesuffix(".md")
