# SPDX-License-Identifier: Apache-2.0
"""The README for a package index, where a relative link leads nowhere: a provider of metadata for scikit-build-core.

Links and images get the address of the file under the tag of this version, below the ``Source`` of ``project.urls``.
Ours rather than hatch-fancy-pypi-readme: ``pip install --no-build-isolation`` without a network needs nothing new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)  # code is left as it is
ABSOLUTE = r"(?![a-z][a-z+.-]*:|#)"  # https:, mailto:, a heading of the page
LINK = re.compile(rf"(!?)(\[(?:[^\[\]]|\[[^\]]*\])*\]\(){ABSOLUTE}([^)\s]+)")  # the text may hold an image
INNER = re.compile(rf"(!)(\[[^\[\]]*\]\(){ABSOLUTE}([^)\s]+)")
TAG = re.compile(rf"(src|href)(=\"){ABSOLUTE}([^\"]+)")


def one(pattern: str, file: str) -> str:
    """What the only group of a pattern finds in a file of the project."""
    found = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"{file} must have one line like {pattern}, found {len(found)}")
    return str(found[0])


def absolute(text: str, source: str, version: str) -> str:
    """Markdown whose relative links and images are those of the tag ``v{version}`` of the repository ``source``."""

    def address(match: re.Match[str]) -> str:
        kind, between, target = match.groups()
        view = "raw" if kind in ("!", "src") else "blob"
        return f"{kind}{between}{source}/{view}/v{version}/{target.removeprefix('./')}"

    parts = FENCE.split(text)
    for index in range(0, len(parts), 2):
        for pattern in (INNER, LINK, TAG):
            parts[index] = pattern.sub(address, parts[index])
    return "".join(parts)


def dynamic_metadata(
    field: str, settings: Mapping[str, Any], project: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The field ``readme``; old versions of scikit-build-core hand over no ``project``."""
    if field != "readme" or settings:
        raise ValueError(f"this provides readme, without settings, got {field} and {dict(settings)}")
    source = one(r'^Source = "(https://[^"]+)"', "pyproject.toml")
    version = one(r'^__version__ = "(.+)"', "pycl/__init__.py")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {"content-type": "text/markdown", "text": absolute(readme, source, version)}
