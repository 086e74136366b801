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
from pycl import Pairs, Points, backends
from pycl.backends import BackendUnavailable, why_not

if reason := why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from pycl.triton_kernels import backward, launch, schedule, support, tiles, tune

from pycl import triton as backend
from pycl.problem import Needs
from pycl.validation import problem_of


def recorded(n: int, d: int, dtype: torch.dtype = torch.bfloat16, symmetric: bool = False) -> list[launch.Launch]:
    """What a forward and backward would launch on Hopper; tensors have shapes and no data, so nothing reads any."""
    x, y = (torch.empty(n, d, dtype=dtype, device="meta") for _ in range(2))
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}
    columns = None if symmetric else Points(y)
    scale = torch.ones((), device="meta")
    problem = problem_of(Points(x), columns, scale, sets, None, None, 0 if symmetric else None, symmetric)
    with launch.recording(90) as found:
        stats = backend.pair_stats(problem, not symmetric)
        slopes = [[s[0], None, s[2]] if s.shape[1] else [None] * 3 for s in stats]
        backend.pair_stats_backward(problem, *stats, *slopes, Needs(True, not symmetric, False))
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
    most = 100e6 if d <= 256 else 100e6 + (80 << 30) / backward.STRIPS
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
    forward = ["prepare", "reduce_tiles", "merge"]
    assert names(1024, 256, symmetric=True) == [*forward, "prepare", "own_gradient", "finish"]
    assert names(1024, 256) == [*forward, "prepare", *2 * ["own_gradient", "finish"]]


def test_launches_of_many_points() -> None:
    found = names(32768, 256)
    assert found[:2] == ["prepare", "plan"]
    assert found.count("plan") == 2
    assert len(found) <= 20
    assert len(names(32768, 512)) <= 40


def test_float64_is_refused() -> None:
    z = torch.randn(2, 5, 4, dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match=r"'triton' takes torch.float32.*got torch.float64.*reference"):
        F.nt_xent(z, backend="triton")
    assert "triton" not in backends.installed("cpu", torch.float64)


@pytest.mark.parametrize("asked", ["triton", None])
def test_a_gpu_with_float64(
    asked: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "DEVICES", ("cuda",))
    backends.why_not.cache_clear()
    backends._automatic.cache_clear()
    try:
        assert backends.choose(None, "cuda", torch.bfloat16) == "triton"
        if asked:
            with pytest.raises(BackendUnavailable, match="float64"):
                backends.choose(asked, "cuda", torch.float64)
        else:
            with caplog.at_level(logging.INFO, logger="pycl"):
                assert [backends.choose(None, "cuda", torch.float64) for _ in range(2)] == ["reference"] * 2
            assert len(caplog.records) == 1
            assert caplog.records[0].levelno == logging.WARNING
            assert "float64" in caplog.text
    finally:
        backends.why_not.cache_clear()
        backends._automatic.cache_clear()


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
    assert schedule.split(264, 132, 16) == 1
    for blocks in (1, 7, 32, 64, 100, 133, 256, 1000):
        runs = schedule.split(blocks, 132, 16)
        waves = -(-blocks * runs // 132)
        assert 1 <= runs <= 16
        assert blocks * runs / (waves * 132) >= min(0.7, blocks * 16 / 132)


@pytest.mark.parametrize("kernel", ["reduce", "own", "store"])
def test_tuning_takes_the_fastest_and_remembers_it(
    kernel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYCL_TILES", str(tmp_path / "folder" / "tiles.json"))
    monkeypatch.setattr(tiles, "TUNED", tiles.load())
    assert tiles.TUNED == {}
    dtype = torch.float32 if kernel == "store" else torch.bfloat16
    problem = tune.problem_for(40, 16, dtype, "cpu")
    choices = [tiles.Tile(rows, 32, 16, 4, 1, piece=32) for rows in (128, 32, 64)]
    seen = []

    def time_of(run: Any) -> float:
        run()
        seen.append(tiles.pick(kernel, 0, dtype.itemsize, 16))
        if len(seen) == 1:
            raise RuntimeError("out of shared memory")
        return seen[-1].rows

    tile, took = tune.fastest(kernel, problem, choices, time_of)
    assert seen == choices
    assert (tile, took) == (choices[1], 32)
    assert tiles.TUNED == {}
    tiles.remember(kernel, 90, 2, 200, tile)
    assert tiles.load() == {(kernel, 90, 2, 256): tile}
    assert tiles.pick(kernel, 90, 2, 129) == tile
    with pytest.raises(RuntimeError, match="no candidate"):
        tune.fastest(kernel, problem, [], time_of)


def test_a_broken_file_of_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYCL_TILES", str(tmp_path / "tiles.json"))
    for text in ("{", '[["own", 90]]', '[["own", 90, 2, 128, [1, 2, 3, 4, 5, 6, 7, 8, 9]]]'):
        tiles.cache_file().write_text(text)
        with pytest.raises(BackendUnavailable, match=r"tiles.json holds no tiles .* delete it"):
            tiles.load()


def test_candidates_for_tuning_keep_the_rules() -> None:
    for kernel, itemsize, d in (("reduce", 2, 128), ("own", 2, 200), ("store", 4, 1000)):
        found = list(tune.candidates(kernel, itemsize, d))
        assert len(found) > 5
        for tile in found:
            assert tile.cols % tile.piece == tile.rows % 32 == 0
            assert kernel != "reduce" or tile.rows % tile.cols == 0
            assert kernel != "own" or tile.holds(d)
