# SPDX-License-Identifier: Apache-2.0
"""What the Triton backend does on the host: memory, launches, logging, and what it refuses."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pycl.functional as F
from pycl import Pairs, Points
from pycl.backends import registry
from pycl.backends.registry import BackendUnavailable, why_not

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.backends.triton import backend as backend
from pycl.backends.triton import gradients, launch, schedule, support, tiles
from pycl.core.problem import Needs
from pycl.engine.validation import problem_of
from pycl.tools import ahead_of_time, sass, triton_tile_time, triton_tune
from pycl.triton_kernels.tile_table import TileConfig


def recorded(n: int, d: int, dtype: torch.dtype = torch.bfloat16, symmetric: bool = False) -> list[launch.Launch]:
    """What a forward and backward would launch on Hopper; tensors have shapes and no data, so nothing reads any."""
    x, y = (torch.empty(n, d, dtype=dtype, device="meta") for _ in range(2))
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}
    columns = None if symmetric else Points(y)
    scale = torch.ones((), device="meta")
    problem = problem_of(Points(x), columns, scale, sets, None, None, 0 if symmetric else None, symmetric)
    with launch.recording(90) as found:
        stats = backend.pair_stats(problem, (), not symmetric, True)
        d_stats = [[s[0], None, s[2]] if s.shape[1] else [None] * 3 for s in stats[:2]]
        backend.pair_stats_backward(problem, (), *stats, *d_stats, Needs(True, not symmetric, False))
    return found


def memory(value: Any) -> dict[int, int]:
    """Bytes by storage of all tensors in a launch's arguments."""
    if isinstance(value, tuple):
        return {key: size for v in value for key, size in memory(v).items()}
    storage = value.untyped_storage() if isinstance(value, Tensor) else None
    return {} if storage is None else {storage._cdata: storage.nbytes()}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("d", [128, 256, 512])
def test_memory_grows_with_the_points_and_not_with_the_pairs(d: int, symmetric: bool) -> None:
    """What a kernel has at hand beyond inputs and outputs; the matrix would be 2 GiB, then 32 GiB.

    Above 256 features a strip of weights is part of it, one part in 512 of a memory of 80 GiB.
    """
    most = 100e6 if d <= 256 else 100e6 + (80 << 30) / gradients.STRIPS
    peaks = []
    for n in (32768, 131072):
        inputs_and_gradients = 2 * n * d * 2
        peaks.append(max(sum(memory(found.arguments).values()) for found in recorded(n, d, symmetric=symmetric)))
        peaks[-1] -= inputs_and_gradients
    assert peaks[0] < most
    assert peaks[1] < 4.2 * peaks[0]


def names(*problem: Any, **options: Any) -> list[str]:
    return [found.kernel.__name__ for found in recorded(*problem, **options)]


def test_launches_of_a_small_batch() -> None:
    forward = ["prepare_kernel", "forward_kernel", "combine_partials_kernel"]
    assert names(1024, 256, symmetric=True) == [
        *forward,
        "prepare_kernel",
        "backward_dx_kernel",
        "finish_gradient_kernel",
    ]
    assert names(1024, 256) == [*forward, "prepare_kernel", *2 * ["backward_dx_kernel", "finish_gradient_kernel"]]


def test_launches_of_many_points() -> None:
    found = names(32768, 256)
    assert found[:2] == ["prepare_kernel", "block_mask_kernel"]
    assert found.count("block_mask_kernel") == 2
    assert len(found) <= 20
    assert len(names(32768, 512)) <= 40


def test_float64_is_refused() -> None:
    z = torch.randn(2, 5, 4, dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match=r"'triton' takes torch.float32.*got torch.float64.*reference"):
        F.nt_xent(z, backend="triton")
    assert "triton" not in registry.installed("cpu", torch.float64)


@pytest.mark.parametrize("asked", ["triton", None])
def test_a_gpu_with_float64(
    asked: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "DEVICES", ("cuda",))
    registry.why_not.cache_clear()
    registry._automatic.cache_clear()
    try:
        assert registry.choose(None, "cuda", torch.bfloat16) == "triton"
        if asked:
            with pytest.raises(BackendUnavailable, match="float64"):
                registry.choose(asked, "cuda", torch.float64)
        else:
            with caplog.at_level(logging.INFO, logger="pycl"):
                assert [registry.choose(None, "cuda", torch.float64) for _ in range(2)] == ["reference"] * 2
            assert len(caplog.records) == 1
            assert caplog.records[0].levelno == logging.WARNING
            assert "float64" in caplog.text
    finally:
        registry.why_not.cache_clear()
        registry._automatic.cache_clear()


def test_cpu_tensors_outside_the_interpreter() -> None:
    code = "import torch, pycl; pycl.functional.nt_xent(torch.randn(2, 4, 3), backend='triton')"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert "backend='triton' runs on cuda tensors, got tensors on cpu" in done.stderr


def test_why_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert support.why_not() is None
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "3.4.0")
        assert "Triton 3.4.0 is older than 3.5" in str(support.why_not())
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.0")
        assert "ROCm" in str(support.why_not())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    assert "8.0 or higher, Tesla V100 has 7.0" in str(support.why_not())


def test_work_is_cut_so_that_all_multiprocessors_are_busy() -> None:
    assert schedule.num_splits(264, 132, 16) == 1
    for blocks in (1, 7, 32, 64, 100, 133, 256, 1000):
        splits = schedule.num_splits(blocks, 132, 16)
        waves = -(-blocks * splits // 132)
        assert 1 <= splits <= 16
        assert blocks * splits / (waves * 132) >= min(0.7, blocks * 16 / 132)


@pytest.fixture
def own_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where tuning leaves what it finds; nothing so far."""
    monkeypatch.setenv("PYCL_TILES", str(tmp_path / "folder" / "tiles.json"))
    monkeypatch.setattr(tiles, "TUNED", tiles.load())
    assert tiles.TUNED == {}
    return tiles.cache_file()


def test_tuning_takes_the_fastest_and_passes_over_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    choices = [TileConfig(rows, 32, 16, 4, 1) for rows in (128, 32, 64)]
    kept = [tile._replace(occupancy=2) for tile in choices]

    def time(tile: TileConfig) -> tuple[TileConfig, float]:
        if tile == choices[0]:
            raise RuntimeError("out of shared memory")
        return tile._replace(occupancy=2), tile.rows

    assert triton_tune.fastest(choices, time) == (kept[1], 32)
    assert f"{choices[0]}: out of shared memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="no tile ran"):
        triton_tune.fastest(choices[:1], time)


@pytest.mark.parametrize("kernel", ["forward", "backward_dx", "write_weights"])
def test_tuning_times_the_tile_it_is_given(kernel: str, own_tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = torch.float32 if kernel == "write_weights" else torch.bfloat16
    tile, seen = TileConfig(64, 32, 16, 4, 1), []
    pick = tiles.pick

    def spy(asked: str, *key: int) -> TileConfig | None:
        seen.append((asked, pick(asked, *key)))
        return seen[-1][1]

    monkeypatch.setattr(tiles, "pick", spy)
    found, milliseconds = triton_tile_time.measure(kernel, 40, 16, dtype, tile)
    assert found == tile
    assert milliseconds > 0
    assert (kernel, tile) in seen


def test_tuning_knows_how_many_programs_fit(own_tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest number of all variants; what fits on no multiprocessor is not run."""
    loop, few = sass.Loop(10.0, 1.0, 0.0), {"num_warps": 4}
    compiled = ahead_of_time.Compiled("backward_dx_kernel", "bfloat16", 16, few, 90, 128, 0, 50 << 10, {}, 1, 1.0, loop)
    seen = []

    def compile_for(found: launch.Launch, arch: int) -> ahead_of_time.Compiled:
        seen.append((found.kernel.__name__, arch))
        return compiled._replace(shared=len(seen) * compiled.shared)

    monkeypatch.setattr(ahead_of_time, "compile_for", compile_for)
    assert triton_tile_time.occupancy_of("backward_dx", 40, 16, torch.bfloat16, 90) == 2  # 228 KB for 101
    assert seen == [("backward_dx_kernel", 90)] * 2
    compiled = compiled._replace(shared=300 << 10)
    with pytest.raises(ValueError, match="fits on no multiprocessor: 1228800 bytes shared"):
        triton_tile_time.occupancy_of("backward_dx", 40, 16, torch.bfloat16, 90)


@pytest.mark.thorough
def test_tuning_from_the_command_line(
    own_tiles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tile that no kernel takes costs its process, and nothing else."""
    good, bad = TileConfig(32, 32, 16, 4, 1), TileConfig(33, 32, 16, 4, 1)
    monkeypatch.setattr(
        triton_tune, "candidates", lambda kernel, *question: [bad, good] if kernel == "forward" else [good]
    )
    assert triton_tune.main(["--features", "16", "--points", "40"]) == 0
    assert tiles.load() == {(kernel, 0, 2, 16): good for kernel in ("forward", "backward_dx")}
    assert tiles.pick("backward_dx", 0, 2, 9) == good
    said = capsys.readouterr()
    assert said.err.count(f"{bad}: ") == 1
    assert f"written to {own_tiles}" in said.out


@pytest.mark.parametrize(
    ("program", "said"),
    [("import os; os.abort()", "status -6"), ("import time; time.sleep(60)", "took more than 2 seconds")],
    ids=["dies", "hangs"],
)
def test_tuning_outlives_what_it_times(
    program: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dying.py").write_text(program)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(triton_tile_time, "__name__", "dying")
    with pytest.raises(RuntimeError, match=said):
        triton_tune.time_of("forward", 40, 16, "bfloat16", TileConfig(32, 32, 16, 4, 1), 2)


def test_a_broken_file_of_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYCL_TILES", str(tmp_path / "tiles.json"))
    for text in ("{", '[["backward_dx", 90]]', '[["backward_dx", 90, 2, 128, [1, 2, 3, 4, 5, 6, 7, 8, 9]]]'):
        tiles.cache_file().write_text(text)
        with pytest.raises(BackendUnavailable, match=r"tiles.json holds no tiles .* delete it"):
            tiles.load()


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize(
    ("kernel", "itemsize", "d"),
    [
        ("forward", 2, 64),
        ("forward", 2, 128),
        ("forward", 4, 128),
        ("backward_dx", 2, 100),
        ("write_weights", 2, 512),
        ("write_weights", 4, 1000),
    ],
)
def test_tuning_tries_few_tiles_that_keep_the_rules(
    kernel: str, itemsize: int, d: int, arch: int, own_tiles: Path
) -> None:
    found = triton_tune.candidates(kernel, arch, itemsize, d)
    assert 5 < len(found) <= 30
    assert len({*found}) == len(found)
    assert found[0]._replace(occupancy=1) == tiles.pick(kernel, arch, itemsize, d)._replace(occupancy=1)
    for tile in found:
        assert tile.cols % tile.piece == tile.rows % 32 == 0
        assert kernel != "forward" or tile.rows % tile.cols == 0
        assert kernel != "backward_dx" or tile.holds(d)


def test_tuning_tries_two_programs_a_multiprocessor(own_tiles: Path) -> None:
    assert TileConfig(64, 128, 128, 4, 2, piece=64) in triton_tune.candidates("backward_dx", 90, 2, 128)
    assert triton_tune.candidates("backward_dx", 90, 2, 300) == []
