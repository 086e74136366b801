# SPDX-License-Identifier: Apache-2.0
"""Whether all files say the same version, and whether it may be published: ``python release/ready.py [v1.2.3]``.

With a tag it must be that of the version, with an owner of the repository and a section of the changelog, which goes
into release-notes.md.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from index_readme import ROOT, one

OWNER = "OWNER"  # of the repository, as long as nobody has set it


def version() -> str:
    return one(r'^__version__ = "(.+)"', "pycl/__init__.py")


def section(name: str) -> str | None:
    """What the changelog has under ``## [name]``."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## \[{re.escape(name)}\][^\n]*\n(.*?)(?=^## \[|\Z)", text, re.MULTILINE | re.DOTALL)
    return found and found[1].strip()


def disagreements() -> list[str]:
    """What contradicts the version or the address of the repository."""
    now, source = version(), one(r'^Source = "(.+)"', "pyproject.toml")
    found = []
    if (cited := one(r"^version: (.+)", "CITATION.cff")) != now:
        found.append(f"CITATION.cff has version {cited}, pycl/__init__.py {now}")
    if (cited := one(r'^repository-code: "(.+)"', "CITATION.cff")) != source:
        found.append(f"CITATION.cff has the repository {cited}, pyproject.toml {source}")
    if section(now) is None and f"This will be {now}" not in (section("Unreleased") or ""):
        found.append(f'CHANGELOG.md has no section {now}, and "Unreleased" does not say "This will be {now}"')
    urls = re.findall(r'^\w+ = "(https://[^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    found += [f"pyproject.toml: {url} is not below {source}" for url in urls if not f"{url}/".startswith(f"{source}/")]
    return found


def obstacles(tag: str) -> list[str]:
    """Why this checkout must not be published under a tag."""
    found = disagreements()
    if tag != f"v{version()}":
        found.append(f"the tag is {tag}, the version {version()}")
    if f"/{OWNER}/" in one(r'^Source = "(.+)"', "pyproject.toml"):
        found.append("pyproject.toml names no owner of the repository: project.urls")
    if section(version()) is None:
        found.append(f"CHANGELOG.md has no section {version()}")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print("ready.py takes one tag at most", file=sys.stderr)
        return 2
    found = obstacles(arguments[0]) if arguments else disagreements()
    print(*(found or [f"pycl {version()}: nothing contradicts it"]), sep="\n")
    if arguments and not found:
        Path("release-notes.md").write_text(f"{section(version())}\n", encoding="utf-8")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
