# SPDX-License-Identifier: Apache-2.0
"""What the compilers that users have make of the Triton kernels for GPUs that are not here.

``make triton-versions`` fetches the compilers, ``PYCL_TRITON_VERSIONS`` is where else they are. Every report is made by
a process of its own: the interpreter of this one compiles nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pycl.backends.triton.support import why_not

if "triton" not in os.environ.get("PYCL_TEST_REQUIRE", "").split(","):
    pytest.importorskip("triton", reason=why_not() or "Triton cannot be imported")

import pycl
from pycl.tools import ahead_of_time, triton_report, triton_tables
from pycl.triton_kernels import tile_table

ARCHITECTURES = (80, 90, 100)
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
INSTALLED = metadata.version("triton")
VERSIONS = ("3.6.0", "3.7.1", "3.9.0")  # of torch 2.10 and 2.11, of 2.13, and the newest
FETCHED = Path(os.environ.get("PYCL_TRITON_VERSIONS") or Path(__file__).parent.parent.parent / "build")
OTHERS = {"prepare_kernel", "block_mask_kernel", "combine_partials_kernel", "finish_gradient_kernel"}
OTHERS |= {"modifier_gradients_kernel"}
Row = dict[str, Any]


def record(file: Path, version: str, *arguments: str) -> dict[str, Any]:
    """Of the report with this Triton."""
    folders = [str(Path(pycl.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    if version != INSTALLED:
        folders.insert(0, str(FETCHED / f"triton-{version}"))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "PYCL_TILES": str(file.with_name("none.json"))}
    command = [sys.executable, "-m", "pycl.tools.triton_report", *arguments, "--json", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["triton"] == version
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", assembler) for assembler in found["ptxas"].values())
    return found


def complaints(rows: list[Row]) -> Iterator[str]:
    """Whatever no version may do to a kernel."""
    for row in rows:
        name = f"{row['kernel']} sm_{row['architecture']} {row['dtype']} d={row['features']} {row['options']}"
        yield from (f"{name}: {fault}" for fault in row["faults"])
        if row["shared"] > row["limit"] or not row["programs"]:
            yield f"{name}: fits on no multiprocessor"
        if row["kernel"] not in ahead_of_time.SWEEPS:
            continue
        if row["dtype"] != "float32" and not row["matrix"].get(MATRIX[row["architecture"]]):
            yield f"{name}: a product of halves is not on the tensor cores: {row['matrix']}"
        if row["architecture"] >= 90 and not row["bulk_copies"]:
            yield f"{name}: operands are not copied in bulk"
        if row["architecture"] == 90 and row["kernel"] != "backward_dx_kernel" and row["loop"] and row["loop"]["local"]:
            yield f"{name}: spills in its loop: {row['loop']}"


def missing(rows: list[Row]) -> Iterator[str]:
    """Kernels and tiles of the tables that no row is about, or with more programs than fit."""
    kernels = {of: kernel for kernel, of in ahead_of_time.SWEEPS.items()}
    for arch in ARCHITECTURES:
        here = [row for row in rows if row["architecture"] == arch]
        found = {row["kernel"] for row in here}
        wanted = {*OTHERS, "topk_kernel", *ahead_of_time.SWEEPS, *ahead_of_time.SINKHORN}
        yield from (f"{kernel} for sm_{arch}" for kernel in wanted - found)
        for key, tile in tile_table.TABLES[arch].items():
            those = [row for row in here if tile.options().items() <= row["options"].items()]
            if not any(row["kernel"] == kernels[key[0]] for row in those):
                yield f"tile {key} of sm_{arch}"
            elif tile.occupancy > max(row["programs"] for row in those):
                yield f"{tile.occupancy} programs of tile {key} of sm_{arch}"


def test_headline_kernels(tmp_path: Path) -> None:
    found = record(tmp_path / "headline.json", INSTALLED, "--arch", "90", "--headline")["kernels"]
    assert {row["kernel"] for row in found} >= {
        "prepare_kernel",
        "block_mask_kernel",
        "combine_partials_kernel",
        "finish_gradient_kernel",
        *ahead_of_time.SWEEPS,
        "sample_step_kernel",
    }
    assert all(row["loop"] for row in found if row["kernel"] in ahead_of_time.SWEEPS)
    assert not list(complaints(found))


@pytest.mark.thorough
@pytest.mark.parametrize("version", dict.fromkeys([INSTALLED, *VERSIONS]))
def test_every_kernel(version: str, tmp_path: Path) -> None:
    if version != INSTALLED and not (FETCHED / f"triton-{version}").exists():
        pytest.skip(f"{FETCHED} has no triton-{version}: make triton-versions")
    found = record(tmp_path / "all.json", version, "--rare", "90", "--predict")
    rows = found["kernels"]
    assert not list(complaints(rows))
    assert not list(missing(rows))
    clusters = tuple(map(int, version.split(".")[:2])) >= (3, 9)
    steps = [row for row in rows if row["kernel"] == "sample_step_kernel"]
    most = {arch: max(row["options"]["num_ctas"] for row in steps if row["architecture"] == arch) for arch in (80, 90)}
    assert most == {80: 1, 90: 8 if clusters else 1}
    for row in steps:  # two programs on a multiprocessor wait for each other's sums over rows
        assert row["programs"] >= 16 // row["options"]["num_warps"], row
    page = triton_tables.tables_of([found, found | {"triton": "other"}])
    assert f"| {version} | {found['ptxas']['90']} |" in page["compilers"]
    assert all("other" not in table for name, table in page.items() if name != "compilers")


@pytest.mark.parametrize(
    ("arguments", "interpreted", "said"),
    [
        ([], True, "TRITON_INTERPRET is set"),
        (["--arch", "80", "--predict"], False, "need all calls of 90"),
        (["--headline", "--predict"], False, "without --headline"),
    ],
)
def test_what_the_report_refuses(
    arguments: list[str],
    interpreted: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(triton_report, "INTERPRETED", interpreted)
    monkeypatch.setattr(triton_report, "compile_all", lambda *jobs: pytest.fail("something was compiled"))
    with pytest.raises(SystemExit) as refusal:
        triton_report.main(arguments)
    assert refusal.value.code == 2
    assert said in capsys.readouterr().err


def row(tile: str, registers: str, fault: str = "") -> dict[str, str]:
    cells = {"kernel": "backward_dx_kernel", "operands": "bfloat16", "d": "64", "rule": "statistics", "tile": tile}
    return cells | {"warps, stages": "4, 3", "registers": registers, "shared KB": "96", "seconds": "1", "fault": fault}


def test_a_table_of_two_versions() -> None:
    """What differs has a column for each, rows pair up by what they are and by their order, empty columns go."""
    older = [row("64x64", "100"), row("64x64", "110"), row("64x32", "90")]
    newer = [row("64x64", "100"), row("64x64", "120")]
    assert triton_tables.merged({"3.6.0": older, "3.7.1": newer}, triton_tables.KERNEL).splitlines() == [
        "| kernel | operands | d | rule | tile | warps, stages | registers, 3.6.0 | registers, 3.7.1 | shared KB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| backward_dx_kernel | bfloat16 | 64 | statistics | 64x64 | 4, 3 | 100 | 100 | 96 |",
        "| backward_dx_kernel | bfloat16 | 64 | statistics | 64x64 | 4, 3 | 110 | 120 | 96 |",
        "| backward_dx_kernel | bfloat16 | 64 | statistics | 64x32 | 4, 3 | 90 |  | 96 |",
    ]
    assert "| fault |" in triton_tables.merged({"3.6.0": [row("64x64", "1", "spills")]}, triton_tables.KERNEL)


def test_tables_go_between_their_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n")
    triton_tables.write(page, {"one": "| new |"})
    assert page.read_text() == "a\n<!-- one -->\n| new |\n<!-- /one -->\nb\n"
    with pytest.raises(SystemExit, match="has no <!-- two -->"):
        triton_tables.write(page, {"two": ""})
