# SPDX-License-Identifier: Apache-2.0
"""The tables of tiles, how work is cut, and how launches and machine code are read without a GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from pycl.backends.triton.support import why_not

if "triton" not in os.environ.get("PYCL_TEST_REQUIRE", "").split(","):
    pytest.importorskip("triton", reason=why_not() or "Triton cannot be imported")

from pycl.backends.triton import launch, schedule, tiles
from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import Launch
from pycl.backends.triton.operands import LABEL_GROUP
from pycl.tools import ahead_of_time, sass
from pycl.triton_kernels.pair_classes import PointAttributes
from pycl.triton_kernels.prepare import prepare_kernel
from pycl.triton_kernels.tile_table import TABLES, TileConfig

TILES = [(arch, *key, tile) for arch, table in TABLES.items() for key, tile in table.items()]


@pytest.fixture(autouse=True)
def _untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TUNED", {})


@pytest.mark.parametrize(("arch", "kernel", "size", "most", "tile"), TILES)
def test_tiles_are_what_kernels_assume(arch: int, kernel: str, size: int, most: int, tile: TileConfig) -> None:
    assert tile.rows % LABEL_GROUP == tile.cols % LABEL_GROUP == tile.piece % LABEL_GROUP == tile.cols % tile.piece == 0
    assert tile.depth >= 16
    assert tile.depth & (tile.depth - 1) == 0
    assert kernel != "forward" or tile.rows % tile.cols == 0
    assert kernel != "backward_dx" or (tile.holds(most) and size == 2)


@pytest.mark.parametrize("arch", [0, 80, 86, 89, 90, 100, 103, 120])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_problem_has_a_tile(arch: int, itemsize: int) -> None:
    for d in (1, 16, 64, 65, 128, 200, 256, 257, 1024, 3 * 4096):
        assert tiles.pick("forward", arch, itemsize, d) is not None
        assert tiles.pick("write_weights", arch, itemsize, d) is not None
        tile = tiles.pick("backward_dx", arch, itemsize, d)
        assert tile is None or tile.holds(d)


def test_the_tile_is_that_of_the_next_older_architecture() -> None:
    assert tiles.pick("forward", 89, 2, 64) == TABLES[80]["forward", 2, 64]
    assert tiles.pick("forward", 103, 2, 129) == TABLES[100]["forward", 2, 1 << 30]
    assert tiles.pick("backward_dx", 90, 2, 129) == TABLES[90]["backward_dx", 2, 256]


@pytest.mark.parametrize("blocks", [1, 3, 64, 131, 132, 133, 256, 1000])
@pytest.mark.parametrize("slots", [1, 132, 264])
def test_splits_keep_the_device_at_least_as_busy_as_one_would(blocks: int, slots: int) -> None:
    def use(splits: int) -> float:
        return blocks * splits / (-(-blocks * splits // slots) * slots)

    splits = schedule.num_splits(blocks, slots, 16)
    assert 1 <= splits <= 16
    assert use(splits) >= use(1)
    assert all(use(splits) + 0.02 >= use(fewer) for fewer in range(1, splits))


def test_one_split_is_kept_where_more_would_not_help() -> None:
    assert schedule.num_splits(132, 132, 16) == 1
    assert schedule.num_splits(5 * 132, 132, 16) == 1
    assert schedule.num_splits(1, 132, 16) == 16
    assert schedule.num_splits(66, 132, 16) == 2


class Fake:
    """A kernel as far as signatures go."""

    arg_names = ("x", "step", "one", "count", "missing", "points", "BLOCK")
    do_not_specialize = ("count",)


def signature(*arguments: Any) -> ahead_of_time.Signature:
    return ahead_of_time.signature_of(Launch(Fake, arguments, {"BLOCK": 64, "num_warps": 4}))


def test_signature_says_what_a_launch_would_assume() -> None:
    points = PointAttributes(torch.empty(4, dtype=torch.int64), torch.empty(4, dtype=torch.int64), None, None, None)
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
        assert device_of(z.device).architecture == 90
        launch.launch(prepare_kernel, (1,), z, *z.stride(), num_warps=4)
    assert [found.kernel for found in launches] == [prepare_kernel]
    assert launch.recorded_architecture() is None


def code(*parts: str) -> str:
    """As the disassembler lists it; a part is an instruction, with how often it is there, or a label."""
    lines = []
    for part in parts:
        times, _, instruction = part.rpartition(" x ")
        line = part if part.endswith(":") else f"        /*{len(lines):04x}*/   {instruction} ;"
        lines += [line] * int(times or 1)
    return "\n".join(["\t.headerflags @ sm_90", *lines])


def test_the_loop_is_not_a_part_between_two_labels() -> None:
    """A store under a condition has a label behind it; the shortest such part with all exponentials was taken once."""
    body = ["4 x HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8]", "8 x MUFU.EX2 R3, R3", "@P2 BRA `(.L_x_2)", "STS [R5], R3"]
    body += [".L_x_2:", "9 x FADD R3, R3, R4", "2 x SHFL.BFLY PT, R3, R3, 0x1, 0x1f", "LDL R7, [R1+0x4]"]
    bounded = [".L_x_1:", *body, "@P0 BRA `(.L_x_1)"]
    checked = [".L_x_3:", "16 x MUFU.EX2 R3, R3", "8 x FADD R3, R3, R4", "STL [R1], R3", "@!P1 BRA `(.L_x_3)"]
    pieces = [".L_x_4:", "8 x MUFU.EX2 R3, R3", "40 x ISETP.EQ.U32.AND P3, PT, R3, R4, PT", "@!P1 BRA `(.L_x_4)"]
    slow_path = ["BRA `(.L_x_0)"]
    text = code(".L_x_0:", *pieces, *checked, *bounded, *slow_path)
    assert sass.loop_in(text, 8) == sass.Loop(27 / 8, 1, 2 / 8, 1 / 8)
    assert sass.loop_in(text, 32) is None


def test_a_kernel_of_one_tile_has_no_loop() -> None:
    deep = [".L_x_0:", "4 x HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8]", "@P0 BRA `(.L_x_0)", ".L_x_1:"]
    text = code(*deep, "8 x MUFU.EX2 R3, R3", "STL [R1], R3", "EXIT", ".L_x_2:", "16 x MUFU.EX2 R3, R3", "EXIT")
    assert sass.loop_in(text, 8) == sass.Loop(10 / 8, 1, 0, 1 / 8)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"spills": ahead_of_time.MOST_SPILLED, "loop": sass.Loop(10.0, 1.0, 0.0, 0.25)}, None),
        ({"spills": ahead_of_time.MOST_SPILLED, "loop": sass.Loop(10.0, 1.0, 0.0, 0.75)}, "spills in its loop: 8%"),
        ({"spills": 8, "loop": None}, "which was not found"),
        ({"spills": ahead_of_time.MOST_SPILLED + 4}, f"spills {ahead_of_time.MOST_SPILLED + 4} bytes"),
        ({"kernel": "combine_partials_kernel", "spills": 400, "loop": None}, "spills 400 bytes"),
        ({"shared": 230 << 10}, "fits on no multiprocessor"),
        ({"matrix": {}}, "has no wgmma.mma_async"),
        ({"bulk_copies": 0}, "copies no operand in bulk"),
    ],
)
def test_faults(change: dict[str, Any], fault: str | None) -> None:
    loop, matrix = sass.Loop(10.0, 1.0, 0.0), {"wgmma.mma_async": 16}
    options = {"num_warps": 8}
    good = ahead_of_time.Compiled(
        "backward_dx_kernel", "bfloat16", 128, options, 90, 255, 0, 100 << 10, matrix, 9, 1.0, loop
    )
    found = "; ".join(good._replace(**change).faults())
    assert fault in found if fault else not found
