# SPDX-License-Identifier: Apache-2.0
"""Write records' tables into a page: ``python -m pycl.bench.present.page [RECORD.json ...] docs/benchmarks.md``.

They replace what stands between ``<!-- bench:SUITE -->`` and ``<!-- /bench:SUITE -->``. Without a record named, those
in ``bench/results`` of the page's checkout are taken, and the block of the suite "gpu" without any says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..suites.gpu import GPU_CASES
from . import plots, tables
from .tables import Table

RESULTS = Path("bench", "results")  # in a checkout
IMAGES = Path("images")  # beside the page
Record = Mapping[str, Any]


def markdown(record: Record) -> str:
    """The tables of a record, with what they were measured on and how to repeat it."""
    parts = [*_markdown_tables(tables.tables(record)), *(f"* {remark}" for remark in tables.remarks(record)), ""]
    return "\n".join([*parts, f"*{tables.header(record)}.* Repeat it with `{record['command']}`."])


def cpu_markdown(records: Sequence[Record], suite: str) -> str:
    """The records of a suite; under the names of their instruction sets where there are several."""
    of_suite = [record for record in records if record["suite"] == suite]
    if len(of_suite) == 1:
        return markdown(of_suite[0])
    return "\n\n".join(f"**Instruction set {record['cpu']['isa']}**\n\n{markdown(record)}" for record in of_suite)


def gpu_markdown(records: Sequence[Record], folder: Path) -> str:
    """One section a GPU, with its picture where the page's folder has one; what would be measured without a record."""
    if not records:
        return "\n".join([*_markdown_tables([tables.unmeasured(GPU_CASES)]), "No GPU has been measured yet."])
    sections = []
    for record in records:
        name, picture = record["gpu"]["name"], IMAGES / plots.file_name(record)
        image = f"\n\n![Time and share of the roofline against N on {name}]({picture.as_posix()})"
        sections.append(f"**{name}**\n\n{markdown(record)}{image if (folder / picture).exists() else ''}")
    return "\n\n".join(sections)


def _markdown_tables(found: Sequence[Table]) -> list[str]:
    parts = []
    for title, columns, cells in found:
        rule = ["---", *["---:"] * (len(columns) - 1)]
        parts += [f"{title}:", "", *("| " + " | ".join(line) + " |" for line in (columns, rule, *cells)), ""]
    return parts


def rewrite(text: str, suite: str, body: str) -> str:
    """``text`` with the suite's block replaced; raises ``ValueError`` unless it has exactly one."""
    start, end = f"<!-- bench:{suite} -->", f"<!-- /bench:{suite} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"the file must hold {start} and, below it, {end}, once each")
    before, rest = text.split(start)
    return f"{before}{start}\n{body}\n{end}{rest.split(end)[1]}"


def write_or_print(arguments: Sequence[str], suite: str, body: str) -> None:
    """Put a suite's block into the page that is the only argument, or print it where there is none."""
    if arguments:
        page = Path(arguments[0])
        page.write_text(rewrite(page.read_text(), suite, body))
    else:
        print(body)


def results_of(page: Path) -> list[Path]:
    """The records of the checkout that holds the page."""
    roots = (folder for folder in page.resolve().parents if (folder / RESULTS).is_dir())
    return sorted((root / RESULTS).glob("*.json")) if (root := next(roots, None)) else []


def written(text: str, records: Sequence[Record], folder: Path, gpu: bool) -> str:
    """The page's text with the blocks of the records, and of the suite "gpu" where ``gpu`` says so or it has one."""
    on_gpus = [record for record in records if record["suite"] == "gpu"]
    on_cpus = [record for record in records if record["suite"] != "gpu"]
    bodies = {record["suite"]: cpu_markdown(on_cpus, record["suite"]) for record in on_cpus}
    if on_gpus or gpu:
        bodies["gpu"] = gpu_markdown(on_gpus, folder)
    for suite, body in bodies.items():
        text = rewrite(text, suite, body)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    program = "python -m pycl.bench.present.page"
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").split(":")[0])
    parser.add_argument("records", type=Path, nargs="*", metavar="RECORD.json", help="default: those of the checkout")
    parser.add_argument("page", type=Path, metavar="PAGE.md", help="docs/benchmarks.md")
    options = parser.parse_args(argv)
    records = [json.loads(path.read_text()) for path in options.records or results_of(options.page)]
    on_gpus = [record for record in records if record["suite"] == "gpu"]
    if on_gpus and importlib.util.find_spec("matplotlib") is None:
        print("pictures are left as they are: matplotlib is not installed", file=sys.stderr)
    elif on_gpus:
        for record in on_gpus:
            plots.draw(record, options.page.parent / IMAGES)
    try:
        text = written(options.page.read_text(), records, options.page.parent, gpu=not options.records)
    except ValueError as error:
        parser.error(f"{options.page}: {error}")
    options.page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
