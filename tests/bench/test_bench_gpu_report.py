# SPDX-License-Identifier: Apache-2.0
"""What is made of a run of the suite "gpu": shares of the roof, targets, the README's block, the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.bench_on_cpu import NAME, ROOFS, ROWS, a_record, a_row

from pycl.bench import gpu_plot, gpu_report, readme, rows, runner
from pycl.bench.gpu_rows import GPU_ROWS


@pytest.mark.parametrize(("loss", "least"), [("clip", 8), ("siglip", 6), ("nt_xent", 4), ("mv_dhel", 16)])
def test_floor(loss: str, least: int) -> None:
    row = rows.Row("any", loss, 1000, 10)
    assert row.floor_flop == least * 1000**2 * 10
    floor = gpu_report.floor_seconds({"floor_flop": 800e12, "floor_bytes": 0, "format": "bfloat16"}, ROOFS)
    assert floor == pytest.approx(1.0)


def test_share_of_roof_and_what_is_met() -> None:
    name = "clip-32768-d256-bf16"
    floor = 8 * 32768**2 * 256 / ROOFS["bfloat16"]
    fast = {"ours": 1.5 * floor, "eager": 7.5 * floor, "inf-cl": 12 * floor}
    row = a_row(name, fast, mib=100e6 / 2**20)
    assert gpu_report.share_of_roof(row, ROOFS) == pytest.approx(2 / 3)
    assert gpu_report.met_text(row, ROOFS) == "yes"
    slow = a_row(name, fast | {"ours": 1.6 * floor}, mib=100e6 / 2**20 + 1)
    assert gpu_report.met_text(slow, ROOFS) == "no: roof, memory, eager, inf-cl"
    alone = a_row(name, {"ours": 1.5 * floor, "eager": 20 * floor})
    assert gpu_report.met_text(alone, ROOFS) == "yes, inf-cl not measured"
    assert set(gpu_report.parts_met(alone | {"refused": "wrong"}, ROOFS).values()) == {False}
    assert gpu_report.met_text(a_row("mv_dhel-8192-d256-bf16", {"ours": 1.0}), ROOFS) == "-"


def a_readme(folder: Path, record: dict[str, Any] | None) -> str:
    (folder / "bench" / "results").mkdir(parents=True)
    if record:
        (folder / "bench" / "results" / "nvidia-h200.json").write_text(json.dumps(record))
    path = folder / "README.md"
    path.write_text("before\n<!-- bench:gpu -->\nold\n<!-- /bench:gpu -->\nafter\n")
    assert readme.main([str(path)]) == 0
    text = path.read_text()
    assert text.startswith("before\n<!-- bench:gpu -->\n")
    assert text.endswith("\n<!-- /bench:gpu -->\nafter\n")
    assert "old" not in text
    return text


def test_readme_without_a_record(tmp_path: Path) -> None:
    cells = [line.strip("| ").split(" | ") for line in a_readme(tmp_path, None).splitlines() if line.startswith("| ")]
    _, _, *rows = cells
    assert len(rows) == sum(row.target is not None for row in GPU_ROWS) + 1
    for _, *figures, _, met in rows:
        assert set(figures) <= {"not measured", "-"}
        assert figures[:4] == ["not measured"] * 4
        assert met in ("not measured", "-")
    assert not (tmp_path / "docs").exists()


def test_readme_with_a_record(tmp_path: Path) -> None:
    times = {"ours": 4e-3, "eager": 30e-3, "inf-cl": 80e-3}
    rows = [a_row("clip-32768-d256-bf16", times), a_row("clip-8192-d256-bf16", {"ours": 1e-3, "eager": 2e-3})]
    rows[0]["wrong"] = {"inf-cl": 0.02}
    missed = runner.describe(ROWS["nt_xent-32768-d256-bf16"]) | {"reason": "needs about 9 s, 1 s of 480 s were left"}
    absent = {"lightly": {"version": None, "why_not": "not installed"}}
    text = a_readme(tmp_path, a_record(rows, not_reached=[missed], peers=absent))
    assert f"**{NAME}**" in text
    assert "| clip 32768, d = 256, bfloat16 | 4 (4-4) | 2.75 | 69% | 52.4 | 7.5 x | - | 20.0 x | - | - |" in text
    assert "| yes |" in text
    assert "| clip 8192, d = 256, bfloat16 | 1 (1-1) | 0.172 | 17% | 52.4 | 2.0 x | - | - | - | - |\n" in text
    assert "| nt_xent 32768, d = 256, bfloat16 | not measured | not measured |" in text
    assert "80 (off by 0.02)" in text
    assert "not reached: nt_xent 32768, d = 256, bfloat16, needs about 9 s" in text
    assert "peer lightly: not installed" in text
    picture = "docs/images/gpu-nvidia-h200.png"
    assert f"({picture})" in text
    assert (tmp_path / picture).stat().st_size > 10_000


def test_a_row_that_compiles_joins_the_others_of_its_size_in_the_plot() -> None:
    compiling = a_row("clip-32768-d256-bf16-compile", {"ours": 5e-3, "compile": 9e-3})
    joined = gpu_plot.series(a_record([a_row("clip-32768-d256-bf16", {"ours": 4e-3}), compiling]), "clip")
    (row,) = joined
    assert {name: t["median"] for name, t in row["time_s"].items()} == {"ours": 4e-3, "compile": 9e-3}


def test_plot_needs_two_sizes(tmp_path: Path) -> None:
    assert gpu_plot.draw(a_record([a_row("clip-8192-d256-bf16", {"ours": 1e-3})]), tmp_path) is None
