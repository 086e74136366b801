# SPDX-License-Identifier: Apache-2.0
"""The tables of a page from records of ``triton_report --json``, one for each Triton: ``... PAGE RECORD [RECORD ...]``.

A column that all of them agree on is there once, one that they differ in once for each Triton.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pycl.tools.ahead_of_time import SINKHORN, SWEEPS
from pycl.tools.h200_model import ARCHITECTURE

Row = dict[str, str]
KERNEL = ("kernel", "operands", "d", "rule", "tile", "warps, stages")
PREDICTION = ("loss", "d", "kernel")
UNSHOWN = ("sm", "seconds")  # the page is about one architecture, and nobody waits for these seconds


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def merged(tables: dict[str, list[Row]], key: tuple[str, ...]) -> str:
    """One table of those of all versions: rows with the same ``key`` side by side, in their order."""
    keyed = {version: _keyed(rows, key) for version, rows in tables.items()}
    order = list(dict.fromkeys(name for rows in keyed.values() for name in rows))
    head, columns = list(key), [[name[k] for name in order] for k in range(len(key))]
    for title in next(iter(tables.values()))[0]:
        if title in key or title in UNSHOWN:
            continue
        found = {version: [rows.get(name, {}).get(title) for name in order] for version, rows in keyed.items()}
        known = [{cell for cell in cells if cell is not None} for cells in zip(*found.values(), strict=True)]
        if all(len(cells) == 1 for cells in known):
            found = {"": [cells.pop() for cells in known]}
        for version, cells in found.items():
            head.append(f"{title}, {version}" if version else title)
            columns.append([cell or "" for cell in cells])
    kept = [k for k, column in enumerate(columns) if any(column)]
    return markdown((head[k] for k in kept), zip(*(columns[k] for k in kept), strict=True))


def _keyed(rows: list[Row], key: tuple[str, ...]) -> dict[tuple[str, ...], Row]:
    seen: Counter[tuple[str, ...]] = Counter()
    found = {}
    for row in rows:
        name = tuple(row[title] for title in key)
        found[(*name, str(seen[name]))] = row  # variants of a kernel differ in what the table does not show
        seen[name] += 1
    return found


def tables_of(records: list[dict[str, Any]]) -> dict[str, str]:
    def kernels(wanted: Callable[[str], bool]) -> dict[str, list[Row]]:
        return {
            record["triton"]: [
                row["cells"]
                for row in record["kernels"]
                if row["architecture"] == ARCHITECTURE and wanted(row["kernel"])
            ]
            for record in records
        }

    predicted = {record["triton"]: record["predicted"] for record in records}
    return {
        "compilers": markdown(("Triton", "ptxas", "kernels", "that spill", "with a fault"), map(_summary, records)),
        "compiled": merged(kernels(SWEEPS.__contains__), KERNEL),
        "predicted": merged(predicted, PREDICTION),
        "sinkhorn": merged(kernels(SINKHORN.__contains__), KERNEL),
    }


def _summary(record: dict[str, Any]) -> tuple[str, ...]:
    rows = [row for row in record["kernels"] if row["architecture"] == ARCHITECTURE]
    counts = (len(rows), sum(row["spills"] > 0 for row in rows), sum(bool(row["faults"]) for row in rows))
    return record["triton"], record["ptxas"][str(ARCHITECTURE)], *map(str, counts)


def write(page: Path, tables: dict[str, str]) -> None:
    """Put the tables between their markers, ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (begin and end):
            raise SystemExit(f"{page} has no <!-- {name} --> with its <!-- /{name} -->")
        text = f"{before}{begin}{table}\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pycl.tools.triton_tables", description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("records", type=Path, nargs="+", metavar="record")
    asked = parser.parse_args(arguments)
    records = [json.loads(file.read_text(encoding="utf-8")) for file in asked.records]
    if without := [str(file) for file, record in zip(asked.records, records, strict=True) if "predicted" not in record]:
        parser.error(f"{', '.join(without)}: no predicted times, give report --predict")
    write(asked.page, tables_of(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
