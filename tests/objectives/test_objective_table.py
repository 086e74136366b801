# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/objectives.md are what the rows say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pycl import objectives
from pycl.testing.objectives import OBJECTIVES, OUTSIDE
from pycl.tools import objective_table

ROOT = Path(__file__).parent.parent.parent
PAGE, RECORD = ROOT / "docs" / "objectives.md", ROOT / "bench" / "results" / "cpu-objectives.json"
checkout = pytest.mark.skipif(not PAGE.exists(), reason="runs in a checkout")


@checkout
def test_the_page_has_the_tables_of_the_code(tmp_path: Path) -> None:
    """Otherwise: make objective-table."""
    copy = tmp_path / "objectives.md"
    shutil.copy(PAGE, copy)
    assert objective_table.main([str(copy), str(RECORD)]) == 0
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_every_function_has_a_line_and_every_paper_outside() -> None:
    tables = objective_table.tables_of({})
    functions = {name for name in objectives.__all__ if name[0].islower()}
    lines = [line.split(" | ")[0] for line in tables["objectives"].splitlines()[2:]]
    assert sorted(lines) == sorted(f"| `{name}`" for name in functions)
    assert all(reason in tables["outside"] for reason in OUTSIDE.values())


def test_memory_in_words() -> None:
    paper = OBJECTIVES["grace"].paper
    assert paper is not None
    cells = objective_table.line(OBJECTIVES["grace"], paper, 37.4)
    assert cells[4:6] == ("2 GiB", "37 MiB")
    assert objective_table.line(OBJECTIVES["grace"], paper, None)[5] == "not measured"


def test_a_record_that_is_not_there_leaves_ours_open(tmp_path: Path) -> None:
    assert objective_table.peaks_of(tmp_path / "none.json") == {}
