# SPDX-License-Identifier: Apache-2.0
"""What is made of a run of the suite "gpu": shares of the roofline, tables, the page's block, the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.bench_on_cpu import CASES, NAME, RATES, a_record, a_row

from pycl.bench.present import figures, page, plots, tables
from pycl.bench.suites.case import Case
from pycl.bench.suites.gpu import GPU_CASES


@pytest.mark.parametrize(("loss", "least"), [("clip", 8), ("siglip", 6), ("nt_xent", 4), ("mv_dhel", 16)])
def test_floor(loss: str, least: int) -> None:
    case = Case("any", loss, 1000, 10)
    assert case.floor_flop == least * 1000**2 * 10
    assert case.workload.floor == f"{least} N² d"
    floor = figures.floor_seconds({"floor_flop": 800e12, "floor_bytes": 0, "format": "bfloat16"}, RATES)
    assert floor == pytest.approx(1.0)


def test_share_of_roofline() -> None:
    floor = 8 * 32768**2 * 256 / RATES["bfloat16"]
    row = a_row("clip-32768-d256-bf16", {"ours": 1.5 * floor, "eager": 7.5 * floor})
    assert figures.share_of_roofline(row, RATES) == pytest.approx(2 / 3)
    assert figures.ratio(row, "eager", "ours") == pytest.approx(5)
    assert figures.ratio(row, "inf-cl", "ours") is None
    assert figures.share_of_roofline(CASES["clip-32768-d256-bf16"].as_record(), RATES) is None
    assert figures.share_of_roofline(a_row("potentials-4096-d128-highest", {"ours": 1.0}), RATES) is None


def a_page(folder: Path, record: dict[str, Any] | None) -> str:
    (folder / "bench" / "results").mkdir(parents=True)
    (folder / "docs").mkdir()
    if record:
        (folder / "bench" / "results" / "nvidia-h200.json").write_text(json.dumps(record))
    path = folder / "docs" / "benchmarks.md"
    path.write_text("before\n<!-- bench:gpu -->\nold\n<!-- /bench:gpu -->\nafter\n")
    assert page.main([str(path)]) == 0
    text = path.read_text()
    assert text.startswith("before\n<!-- bench:gpu -->\n")
    assert text.endswith("\n<!-- /bench:gpu -->\nafter\n")
    assert "old" not in text
    return text


def test_page_without_a_record(tmp_path: Path) -> None:
    text = a_page(tmp_path, None)
    _, _, *cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {kind for kind, _, _ in cells} == {f"{case.loss}, {case.format}" for case in GPU_CASES}
    assert ["siglip, bfloat16", "128: 32768; 256: 32768; 512: 32768; 768: 32768, 65536"] in [line[:2] for line in cells]
    assert "eager, compile, memeff, inf-cl" in text
    assert "No GPU has been measured yet." in text
    assert "not measured" not in text
    assert not (tmp_path / "docs" / "images").exists()


def test_page_with_a_record(tmp_path: Path) -> None:
    times = {"ours": 4e-3, "eager": 30e-3, "inf-cl": 80e-3}
    rows = [a_row("clip-32768-d256-bf16", times), a_row("clip-8192-d256-bf16", {"ours": 1e-3, "eager": 2e-3})]
    rows[0]["wrong"] = {"inf-cl": 0.02}
    rows[1]["skipped"] = {"memeff": "RuntimeError: no kernel image"}
    rows += [
        CASES["clip-1024-d256-bf16"].as_record() | {"backend": None, "refused": "its process ended: exit status 3"}
    ]
    missed = CASES["nt_xent-32768-d256-bf16"].as_record() | {"reason": "needs about 9 s, 1 s of 480 s were left"}
    absent = {"lightly": {"version": None, "why_not": "not installed"}}
    text = a_page(tmp_path, a_record(rows, not_reached=[missed], peers=absent))
    assert f"**{NAME}**" in text
    assert "the least work of a step (clip: 8 N² d) takes at the rate of one large torch.mm" in text
    assert "| row | ours (ms) | floor (ms) | share of roofline | memory (MB) | vs eager | vs inf-cl |\n" in text
    assert "| clip 32768, d = 256, bfloat16 | 4 (4-4) | 2.75 | 69% | 52.4 | 7.5 x | 20.0 x (off by 0.02) |\n" in text
    assert "| clip 8192, d = 256, bfloat16 | 1 (1-1) | 0.172 | 17% | 52.4 | 2.0 x | - |\n" in text
    assert f"| clip 1024, d = 256, bfloat16 |{' refused |' * 6}\n" in text
    assert "REFUSED clip 1024, d = 256, bfloat16: its process ended: exit status 3" in text
    assert "memeff has no time: RuntimeError: no kernel image (clip 8192, d = 256, bfloat16)" in text
    assert "not reached: nt_xent 32768, d = 256, bfloat16, needs about 9 s" in text
    assert "peer lightly: not installed" in text
    assert "rates measured in the same run: 800 TFLOP/s in bfloat16; " in text
    picture = "images/gpu-nvidia-h200.png"
    assert f"({picture})" in text
    assert (tmp_path / "docs" / picture).stat().st_size > 10_000


def test_launches_of_small_batches() -> None:
    row = a_row("clip-1024-d256-bf16", {"ours": 1e-4, "eager": 2e-4})
    row |= {"launches": {"ours": 4, "eager": None}, "host_s": {"ours": 5e-5, "eager": 6e-5}}
    *_, small = tables.tables(a_record([row]))
    assert small.columns == (
        "row", "ours (ms)", "eager (ms)", "launches, ours", "launches, eager", "host, ours (ms)", "host, eager (ms)"
    )  # fmt: skip
    assert small.cells == [[row["label"], "0.1", "0.2", "4", "-", "0.05", "0.06"]]


def test_a_row_that_compiles_joins_the_others_of_its_size_in_the_plot() -> None:
    compiling = a_row("clip-32768-d256-bf16-compile", {"ours": 5e-3, "compile": 9e-3})
    joined = plots.series(a_record([a_row("clip-32768-d256-bf16", {"ours": 4e-3}), compiling]), "clip")
    (row,) = joined
    assert {name: t["median"] for name, t in row["time_s"].items()} == {"ours": 4e-3, "compile": 9e-3}


def test_plot_needs_two_sizes(tmp_path: Path) -> None:
    assert plots.draw(a_record([a_row("clip-8192-d256-bf16", {"ours": 1e-3})]), tmp_path) is None
    assert not any(tmp_path.iterdir())
