# SPDX-License-Identifier: Apache-2.0
"""A notebook as a page: its text, its code, and the text and pictures that it printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def page_of_notebook(path: Path) -> str:
    """Markdown with the cells of a notebook, and a link to the file.

    The code is shown, not run with the pages: notebooks have a test of their own.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    at = 1 if parts and parts[0].startswith("# ") else 0
    parts.insert(at, f"[The notebook]({path.name}), as a file.")
    return "\n\n".join(parts) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"]).strip("\n")
    if cell["cell_type"] != "code":
        yield source
        return
    if source:
        yield f"````python no-run\n{source}\n````"
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        text = "".join(output.get("text", data.get("text/plain", ()))).rstrip()
        if "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            yield f'<img alt="what the cell drew" src="data:image/png;base64,{picture}">'
        elif text:
            yield f"````text\n{text}\n````"
