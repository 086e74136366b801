# SPDX-License-Identifier: Apache-2.0
"""The documentation site, ``make docs``: what is generated for it, and what its pages are held to.

``guides.py`` reads and runs the code of pages; ``links.py`` leads their links into the site; ``pairs.py`` records which
pairs a loss compares, ``drawing.py`` draws them; ``pages.py`` writes a page for each loss and for each package;
``docstrings.py`` and ``hooks.py`` are what mkdocstrings and MkDocs call, ``__main__.py`` builds.
"""

from __future__ import annotations
