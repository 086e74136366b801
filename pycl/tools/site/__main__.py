# SPDX-License-Identifier: Apache-2.0
"""``python -m pycl.tools.site``, as ``make docs`` runs it: the code of all pages, the site, and what came out of it."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

MISSING = "pycl.tools.site needs {}: pip install 'pycl-kernels[docs]', or `make docs`, which installs it"
RAW = re.compile(r":(?:func|class|meth|mod|math):|``|\.\. math::")
CODE = re.compile(r"<(pre|script|style)\b.*?</\1>", re.DOTALL)
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"((?:https?:)?//[^\"]+)"
    r"|<link\b(?![^>]*rel=\"(?:canonical|next|prev)\")[^>]*\bhref=\"((?:https?:)?//[^\"]+)"
)


class Warnings(logging.Handler):
    """Keeps what MkDocs and its plugins complain about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(" ".join(record.getMessage().split()))


def run_code(root: Path) -> list[str]:
    """What the Python blocks of all pages raise, a line for each page that is broken; and doctests."""
    from pycl.tools.site import guides, pages

    texts = {**guides.pages_of(root), **pages.generated(root)}
    broken, before = [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        os.chdir(folder)
        for name, text in texts.items():
            try:
                guides.check(text, f"docs/{name}", runs=True)
            except guides.BrokenPage as error:
                broken.append(str(error))
        os.chdir(before)
        broken += guides.doctests()
    return broken


def build(root: Path) -> list[str]:
    """Build the site; what was wrong with it, a line each."""
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort, MkDocsException

    kept = Warnings()
    log = logging.getLogger("mkdocs")
    log.addHandler(kept)
    try:
        config = load_config(str(root / "mkdocs.yml"), strict=False)  # a strict build says how many warnings there were
        config.plugins.on_startup(command="build", dirty=False)
        build_site(config)
    except (Abort, MkDocsException) as error:
        return [" ".join(dict.fromkeys(kept.said)) or str(error)]
    finally:
        log.removeHandler(kept)
    return list(dict.fromkeys(kept.said)) + inspect_pages(Path(config.site_dir))


def inspect_pages(site: Path) -> list[str]:
    """Markup that stayed as it was, and what a browser would fetch from elsewhere."""
    found = []
    for page in sorted(site.glob("**/*.html")):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(site)
        found += [f"{name} has {raw!r} in its text" for raw in sorted(set(RAW.findall(CODE.sub("", text))))]
        found += [f"{name} fetches {a or b}" for a, b in sorted(set(FETCHED.findall(text)))]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pycl.tools.site", description=__doc__)
    parser.add_argument("--no-run", action="store_true", help="look at the syntax of code, do not run it")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout")
    asked = parser.parse_args(arguments)
    root = asked.root.resolve()
    if not (root / "mkdocs.yml").exists():
        sys.exit(f"pycl.tools.site: no mkdocs.yml in {root}: run it in a checkout, or name one with --root")
    try:
        import latex2mathml  # noqa: F401
        import material  # noqa: F401
        import mkdocs  # noqa: F401
        import mkdocstrings_handlers.python  # noqa: F401
    except ModuleNotFoundError as error:
        sys.exit(MISSING.format(error.name))
    problems = ([] if asked.no_run else run_code(root)) or build(root)
    for problem in problems:
        print(f"docs: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
