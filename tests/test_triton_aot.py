# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of the Triton kernels for GPUs that are not here, and the tables of tiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pycl.triton_kernels.support import why_not

if "triton" not in os.environ.get("PYCL_TEST_REQUIRE", "").split(","):
    pytest.importorskip("triton", reason=why_not() or "Triton cannot be imported")

from pycl.triton_kernels import aot, launch, sides, sinkhorn, tiles
from pycl.triton_kernels.launch import Launch
from pycl.triton_kernels.operands import prepare

import pycl

ARCHITECTURES = (80, 90, 100)
TILES = [(arch, *key, tile) for arch, table in tiles.TABLES.items() for key, tile in table.items()]
GROUP = sides.GROUP


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The report, by a process of its own: the interpreter of this one compiles nothing."""
    folder = tmp_path_factory.mktemp("report")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYCL_TILES": str(folder / "none.json")}
    environment["PYTHONPATH"] = str(Path(pycl.__file__).parent.parent)
    command = [
        sys.executable,
        "-m",
        "pycl.triton_kernels.report",
        "--rare",
        "90",
        "--json",
        str(folder / "report.json"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(autouse=True)
def _untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TUNED", {})


def of_sweeps(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    for row in rows:
        if row["kernel"] in aot.SWEEPS:
            yield row, f"{row['kernel']} sm_{row['architecture']} {row['dtype']} d={row['features']} {row['options']}"


def test_nothing_has_a_fault(rows: list[dict[str, Any]]) -> None:
    assert not [(row["kernel"], row["architecture"], row["options"], row["faults"]) for row in rows if row["faults"]]


def test_registers_and_shared_memory_suffice(rows: list[dict[str, Any]]) -> None:
    assert not [row for row in rows if row["spills"] or row["shared"] > row["limit"] or not row["programs"]]


def test_products_of_halves_are_on_the_tensor_cores(rows: list[dict[str, Any]]) -> None:
    wanted = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
    without = [
        name
        for row, name in of_sweeps(rows)
        if row["dtype"] != "float32" and not row["matrix"].get(wanted[row["architecture"]])
    ]
    assert not without


def test_operands_are_copied_in_bulk(rows: list[dict[str, Any]]) -> None:
    assert not [name for row, name in of_sweeps(rows) if row["architecture"] >= 90 and not row["bulk_copies"]]


def test_every_kernel_was_compiled(rows: list[dict[str, Any]]) -> None:
    for arch in ARCHITECTURES:
        found = {row["kernel"] for row in rows if row["architecture"] == arch}
        assert found >= {"prepare", "plan", "merge", "finish", "top_of_tiles", *aot.SWEEPS, *aot.SINKHORN}


def test_long_rows_are_spread_over_clusters(rows: list[dict[str, Any]]) -> None:
    steps = [row for row in rows if row["kernel"] == "sample_step"]
    most = {arch: max(row["options"]["num_ctas"] for row in steps if row["architecture"] == arch) for arch in (80, 90)}
    assert most == {80: 1, 90: 8 if sinkhorn.CLUSTERS else 1}
    for row in steps:  # two programs on a multiprocessor wait for each other's sums over rows
        assert row["programs"] >= 16 // row["options"]["num_warps"], row


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_tile_was_compiled(rows: list[dict[str, Any]], arch: int) -> None:
    found = {
        (row["kernel"], *(row["options"].get(name) for name in ("BM", "BN", "BP", "BK", "num_warps", "num_stages")))
        for row in rows
        if row["architecture"] == arch
    }
    kernels = {of: kernel for kernel, of in aot.SWEEPS.items()} | {"biased": "own_gradient"}
    table = tiles.TABLES[arch].items()
    assert not [key for key, tile in table if (kernels[key[0]], *tile.options().values()) not in found]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_as_many_programs_fit_as_the_tables_say(rows: list[dict[str, Any]], arch: int) -> None:
    for key, tile in tiles.TABLES[arch].items():
        fit = [
            row["programs"]
            for row in rows
            if row["architecture"] == arch and tile.options().items() <= row["options"].items()
        ]
        assert tile.resident <= max(fit), key


def test_the_interpreter_is_refused(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(pycl.__file__).parent.parent)}
    command = [sys.executable, "-m", "pycl.triton_kernels.report", "--json", str(tmp_path / "none.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arch", "kernel", "size", "most", "tile"), TILES)
def test_tiles_are_what_kernels_assume(arch: int, kernel: str, size: int, most: int, tile: tiles.Tile) -> None:
    assert tile.rows % GROUP == tile.cols % GROUP == tile.piece % GROUP == tile.cols % tile.piece == 0
    assert tile.depth >= 16
    assert tile.depth & (tile.depth - 1) == 0
    assert kernel != "reduce" or tile.rows % tile.cols == 0
    assert kernel not in ("own", "biased") or (tile.holds(most) and size == 2)


@pytest.mark.parametrize("arch", [0, 80, 86, 89, 90, 100, 103, 120])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_problem_has_a_tile(arch: int, itemsize: int) -> None:
    for d in (1, 16, 64, 65, 128, 200, 256, 257, 1024, 3 * 4096):
        assert tiles.pick("reduce", arch, itemsize, d) is not None
        assert tiles.pick("store", arch, itemsize, d) is not None
        for kernel in ("own", "biased"):
            tile = tiles.pick(kernel, arch, itemsize, d)
            assert tile is None or tile.holds(d)


def test_the_tile_is_that_of_the_next_older_architecture() -> None:
    assert tiles.pick("reduce", 89, 2, 64) == tiles.TABLES[80]["reduce", 2, 64]
    assert tiles.pick("reduce", 103, 2, 129) == tiles.TABLES[100]["reduce", 2, 1 << 30]
    assert tiles.pick("own", 90, 2, 129) == tiles.TABLES[90]["own", 2, 256]
    assert tiles.pick("biased", 80, 2, 64) == tiles.TABLES[80]["own", 2, 64]


@pytest.mark.parametrize("blocks", [1, 3, 64, 131, 132, 133, 256, 1000])
@pytest.mark.parametrize("slots", [1, 132, 264])
def test_runs_keep_the_device_at_least_as_busy_as_one_would(blocks: int, slots: int) -> None:
    def use(runs: int) -> float:
        return blocks * runs / (-(-blocks * runs // slots) * slots)

    runs = sides.split(blocks, slots, 16)
    assert 1 <= runs <= 16
    assert use(runs) >= use(1)
    assert all(use(runs) + 0.02 >= use(fewer) for fewer in range(1, runs))


def test_one_run_is_kept_where_more_would_not_help() -> None:
    assert sides.split(132, 132, 16) == 1
    assert sides.split(5 * 132, 132, 16) == 1
    assert sides.split(1, 132, 16) == 16
    assert sides.split(66, 132, 16) == 2


class Fake:
    """A kernel as far as signatures go."""

    arg_names = ("x", "step", "one", "count", "missing", "points", "BLOCK")
    do_not_specialize = ("count",)


def signature(*arguments: Any) -> aot.Signature:
    return aot.signature_of(Launch(Fake, arguments, {"BLOCK": 64, "num_warps": 4}))


def test_signature_says_what_a_launch_would_assume() -> None:
    points = sides.Points(torch.empty(4, dtype=torch.int64), torch.empty(4, dtype=torch.int64), None, None, None)
    found = signature(torch.empty(4, dtype=torch.bfloat16), 32, 1, 16, None, points)
    assert found.types["x"] == "*bf16"
    assert (found.types["step"], found.types["one"], found.types["count"]) == ("i32", "constexpr", "i32")
    assert found.types["missing"] == found.types["BLOCK"] == "constexpr"
    assert type(found.types["points"]) is type(points)
    assert found.types["points"] == ("*i64", "*i64", "constexpr", "constexpr", "constexpr")
    assert found.constants == {(2,): 1, (4,): None, (5, 2): None, (5, 3): None, (5, 4): None, "BLOCK": 64}
    assert set(found.attributes) == {(0,), (1,), (5, 0), (5, 1)}


def test_signature_of_numbers() -> None:
    found = signature(torch.empty(4), 7, 2**31, 1, None, None)
    assert found.types["step"] == "i32"
    assert found.types["one"] == "i64"
    assert found.types["count"] == "i32"
    assert signature(torch.empty(4), 0.5, 1.0, 1, None, None).types["step"] == "fp32"
    assert (3,) not in found.constants
    assert (1,) not in found.attributes


def test_recording_takes_launches_of_tensors_without_memory() -> None:
    z = torch.empty(64, 32, device="meta")
    with launch.recording(90) as launches:
        assert sides.device_of(z).architecture == 90
        launch.launch(prepare, (1,), z, *z.stride(), num_warps=4)
    assert [found.kernel for found in launches] == [prepare]
    assert launch.recorded_architecture() is None
