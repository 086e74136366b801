# SPDX-License-Identifier: Apache-2.0
"""Links of pages that leave ``docs``: on GitHub they lead to files of the repository, here to pages made of these."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from pycl.tools.site.guides import outside_blocks

LINK = re.compile(r"(\]\()([^)\s]+)(\))")
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "readme.md"}
LANGUAGES = {".py": "python no-run", ".cpp": "cpp", ".h": "cpp", ".yml": "yaml", ".toml": "toml", ".cff": "yaml"}


def rewritten(text: str, page: str, source: str) -> str:
    """The text of a page with its links as the site needs them.

    Args:
        page: where the page is on the site, from ``docs``.
        source: the file that it is made of, from the root of the repository.
    """
    return _linked(text, lambda path: _target(path, page, source))


def outside(text: str, source: str) -> set[str]:
    """The files of the repository outside of ``docs`` that a page links to, but for those that are pages."""
    found: set[str] = set()

    def look(path: str) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not file.startswith("docs/") and file not in ROOT_PAGES:
            found.add(file)
        return path

    _linked(text, look)
    return found


def source_page(root: Path, file: str) -> str:
    """A page that shows a file, or what lies in a folder."""
    path = root / file
    if path.is_dir():
        names = "\n".join(sorted(x.name for x in path.iterdir() if not x.name.startswith((".", "__"))))
        return f"# {file}\n\n````text\n{names}\n````\n"
    text = path.read_text(encoding="utf-8")
    return f"# {file}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def source_name(file: str) -> str:
    """Where the page of a file is."""
    return f"source/{file}.md"


def _linked(text: str, change: Callable[[str], str]) -> str:
    def replace(link: re.Match[str]) -> str:
        path, mark, anchor = link[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        return f"{link[1]}{change(path)}{mark}{anchor}{link[3]}"

    return "".join(LINK.sub(replace, piece) if prose else piece for prose, piece in outside_blocks(text))


def _target(path: str, page: str, source: str) -> str:
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if file in ROOT_PAGES:
        there = ROOT_PAGES[file]
    elif file.startswith("docs/"):
        there = file.removeprefix("docs/")
    else:
        there = source_name(file)
    return posixpath.relpath(there, posixpath.dirname(page) or ".")
