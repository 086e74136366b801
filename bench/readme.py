# SPDX-License-Identifier: Apache-2.0
"""Write records' tables into a README: ``python -m pycl.bench.readme [RECORD.json ...] README.md``.

They replace what stands between ``<!-- bench:SUITE -->`` and ``<!-- /bench:SUITE -->``. Without a record named, those
in ``bench/results`` beside the README are taken, and a GPU suite without any says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import dropins, gpu_plot, gpu_report, report
from .report import Table

IMAGES = Path("docs/images")


def markdown(record: dict[str, Any]) -> str:
    """The tables of a record, with what they were measured on and how to repeat it."""
    view: Any = {"gpu": gpu_report, "dropins": dropins}.get(record["suite"], report)
    parts = [*_markdown_tables(view.tables(record)), *(f"* {remark}" for remark in view.remarks(record)), ""]
    return "\n".join([*parts, f"*{view.header(record)}.* Repeat it with `{record['command']}`."])


def gpu_markdown(records: Sequence[dict[str, Any]], folder: Path) -> str:
    """One section a GPU, with its picture where ``folder`` has one; the targets where there is no record."""
    if not records:
        return "\n".join([*_markdown_tables(gpu_report.unmeasured()), "No GPU has been measured yet."])
    sections = []
    for record in records:
        name, picture = record["gpu"]["name"], IMAGES / gpu_plot.file_name(record)
        image = f"\n\n![Time and share of the roof against N on {name}]({picture.as_posix()})"
        sections.append(f"**{name}**\n\n{markdown(record)}{image if (folder / picture).exists() else ''}")
    return "\n\n".join(sections)


def _markdown_tables(tables: Sequence[Table]) -> list[str]:
    parts = []
    for title, columns, rows in tables:
        rule = ["---", *["---:"] * (len(columns) - 1)]
        parts += [f"{title}:", "", *("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)), ""]
    return parts


def rewrite(text: str, suite: str, body: str) -> str:
    """``text`` with the suite's block replaced; raises ``ValueError`` unless it has exactly one."""
    start, end = f"<!-- bench:{suite} -->", f"<!-- /bench:{suite} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"the file must hold {start} and, below it, {end}, once each")
    before, rest = text.split(start)
    return f"{before}{start}\n{body}\n{end}{rest.split(end)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pycl.bench.readme", description=(__doc__ or "").split(":")[0])
    parser.add_argument("records", type=Path, nargs="*", metavar="RECORD.json")
    parser.add_argument("readme", type=Path, metavar="README.md")
    options = parser.parse_args(argv)
    folder = options.readme.parent
    paths = options.records or sorted((folder / "bench" / "results").glob("*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    on_gpus = [record for record in records if record["suite"] == "gpu"]
    if on_gpus and importlib.util.find_spec("matplotlib") is None:
        print("pictures are left as they are: matplotlib is not installed", file=sys.stderr)
    elif on_gpus:
        for record in on_gpus:
            gpu_plot.draw(record, folder / IMAGES)
    bodies = {record["suite"]: markdown(record) for record in records if record["suite"] != "gpu"}
    if on_gpus or not options.records:
        bodies["gpu"] = gpu_markdown(on_gpus, folder)
    try:
        text = options.readme.read_text()
        for suite, body in bodies.items():
            text = rewrite(text, suite, body)
    except ValueError as error:
        parser.error(f"{options.readme}: {error}")
    options.readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
