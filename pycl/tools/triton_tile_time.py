# SPDX-License-Identifier: Apache-2.0
"""The time of one tile on this GPU, in a process of its own, which may die of it: ``triton_tune`` starts it.

A line of JSON says the tile, with as many programs as fit on a multiprocessor, and the milliseconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from pycl.backends.triton import backend as backend
from pycl.backends.triton import tiles
from pycl.backends.triton.device import device_of
from pycl.backends.triton.launch import recording
from pycl.core.pairs import Pairs, Points
from pycl.core.problem import Needs, Problem
from pycl.engine.validation import problem_of
from pycl.tools import ahead_of_time
from pycl.triton_kernels.interpreter import INTERPRETED
from pycl.triton_kernels.tile_table import TileConfig

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def problem_for(n: int, d: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """CLIP's, of random unit vectors."""
    x, y = (torch.nn.functional.normalize(torch.randn(n, d, device=device), dim=1).to(dtype) for _ in range(2))
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}
    scale = torch.full((), 10.0, device=device)
    return problem_of(Points(x), Points(y), scale, sets, None, None, None, False)


def sweep_of(kernel: str, problem: Problem) -> Callable[[], object]:
    """The call whose time a tile decides."""
    if kernel == "forward":
        return lambda: backend.pair_stats(problem, (), True, True)
    stats = backend.pair_stats(problem, (), True, True)
    d_lse = torch.full_like(stats[0][0], 1 / problem.rows.shape[0])
    d_stats = [d_lse, None, -d_lse]
    return lambda: backend.pair_stats_backward(problem, (), *stats, d_stats, d_stats, Needs(True, True, False))


def occupancy_of(kernel: str, n: int, d: int, dtype: torch.dtype, arch: int) -> int:
    """How many programs of the tile in use fit on a multiprocessor: what they are compiled to decides."""
    with recording(arch) as launches:
        sweep_of(kernel, problem_for(n, d, dtype, torch.device("meta")))()
    found = [
        ahead_of_time.compile_for(launch, arch)
        for launch in launches
        if ahead_of_time.SWEEPS.get(launch.kernel.__name__) == kernel
    ]
    programs = min(compiled.programs for compiled in found)
    if not programs:
        raise ValueError(f"fits on no multiprocessor: {max(compiled.shared for compiled in found)} bytes shared")
    return programs


def measure(kernel: str, n: int, d: int, dtype: torch.dtype, tile: TileConfig) -> tuple[TileConfig, float]:
    """The tile with the occupancy that it has, and milliseconds."""
    arch = device_of(DEVICE).architecture
    key = tiles.key_of(kernel, arch, dtype.itemsize, d)
    tiles.TUNED[key] = tile
    if not INTERPRETED:
        tiles.TUNED[key] = tile = tile._replace(occupancy=occupancy_of(kernel, n, d, dtype, arch))
    return tile, _milliseconds(sweep_of(kernel, problem_for(n, d, dtype, DEVICE)))


def _milliseconds(run: Callable[[], object]) -> float:
    if INTERPRETED:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median"))


def main(asked: str) -> None:
    kernel, n, d, dtype, tile = json.loads(asked)
    print(json.dumps(measure(kernel, n, d, getattr(torch, dtype), TileConfig(*tile))))


if __name__ == "__main__":
    main(sys.argv[1])
