# SPDX-License-Identifier: Apache-2.0
"""Write a record's tables into a README: ``python -m pycl.bench.readme RECORD.json README.md``.

They replace what stands between ``<!-- bench:SUITE -->`` and ``<!-- /bench:SUITE -->``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .report import header, remarks, tables


def markdown(record: dict[str, Any]) -> str:
    """The tables of a record, with what they were measured on and how to repeat it."""
    parts = []
    for title, columns, rows in tables(record):
        rule = ["---", *["---:"] * (len(columns) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)]
        parts += [f"{title}:", "", *lines, ""]
    parts += [*(f"* {remark}" for remark in remarks(record)), ""]
    parts += [f"*{header(record)}.* Repeat it with `{record['command']}`."]
    return "\n".join(parts)


def rewrite(text: str, record: dict[str, Any]) -> str:
    """``text`` with the block of the record's suite replaced; raises ``ValueError`` unless it has exactly one."""
    start, end = f"<!-- bench:{record['suite']} -->", f"<!-- /bench:{record['suite']} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"the file must hold {start} and, below it, {end}, once each")
    before, rest = text.split(start)
    return f"{before}{start}\n{markdown(record)}\n{end}{rest.split(end)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pycl.bench.readme", description=(__doc__ or "").split(":")[0])
    parser.add_argument("record", type=Path, metavar="RECORD.json")
    parser.add_argument("readme", type=Path, metavar="README.md")
    options = parser.parse_args(argv)
    try:
        text = rewrite(options.readme.read_text(), json.loads(options.record.read_text()))
    except ValueError as error:
        parser.error(f"{options.readme}: {error}")
    options.readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
