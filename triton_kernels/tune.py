# SPDX-License-Identifier: Apache-2.0
"""Find the fastest tiles on this GPU: ``python -m pycl.triton_kernels.tune --features 128,256 [--points 32768]``.

Every candidate runs the sweep it is for, on random unit vectors; the fastest goes to ``tiles.cache_file()``, where
every later process finds it. Nothing is ever tuned without being asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch

from ..ops import Needs, Problem
from ..pairs import Pairs, Points
from ..validation import problem_of
from . import aot, tiles
from .sides import device_of
from .tiles import Tile

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def candidates(kernel: str, itemsize: int, d: int) -> Iterator[Tile]:
    """Tiles that keep the tables' rules; those that do not fit the chip fail to launch and are passed over."""
    whole = max(16, 1 << (d - 1).bit_length())
    depths = [whole] if kernel == "own" else sorted({min(whole, depth) for depth in (16, 32, 64, 128, 256)})
    for rows, cols, depth in product((64, 128, 256), (32, 64, 128, 256), depths):
        if rows < cols and kernel == "reduce":
            continue  # symmetric problems need rows in multiples of columns
        if itemsize == 4 and depth > 32:
            continue  # unrolled scalar products
        for warps, stages in product((4, 8), (2, 3, 4)):
            if (rows + stages * cols) * depth * itemsize <= aot.SHARED[90]:
                yield Tile(rows, cols, depth, warps, stages, piece=32)


def sweep_of(kernel: str, problem: Problem) -> Callable[[], object]:
    """The call whose time a tile decides."""
    from .. import triton as backend

    if kernel == "reduce":
        return lambda: backend.pair_stats(problem, True)
    stats = backend.pair_stats(problem, True)
    slope = torch.full_like(stats[0][0], 1 / problem.rows.shape[0])
    slopes = [slope, None, -slope]
    return lambda: backend.pair_stats_backward(problem, *stats, slopes, slopes, Needs(True, True, False))


def fastest(
    kernel: str, problem: Problem, choices: Sequence[Tile], time_of: Callable[[Callable[[], object]], float]
) -> tuple[Tile, float]:
    """The candidate that takes least by ``time_of``, and what it takes; raises RuntimeError where none runs."""
    d, itemsize = problem.rows.shape[1], problem.rows.itemsize
    key = tiles.key_of(kernel, device_of(problem.rows).architecture, itemsize, d)
    found: list[tuple[float, Tile]] = []
    run = sweep_of(kernel, problem)
    before = tiles.TUNED.pop(key, None)
    try:
        for tile in choices:
            tiles.TUNED[key] = tile
            try:
                found.append((time_of(run), tile))
            except Exception as error:  # too much shared memory, too many registers: Triton says it in many ways
                print(f"  {tile}: {type(error).__name__}", file=sys.stderr)
    finally:
        tiles.TUNED.pop(key, None)
        if before is not None:
            tiles.TUNED[key] = before
    if not found:
        raise RuntimeError(f"no candidate for {kernel} ran with {d} features")
    best, tile = min(found, key=lambda pair: pair[0])
    return tile, best


def problem_for(n: int, d: int, dtype: torch.dtype, device: str) -> Problem:
    x, y = (torch.nn.functional.normalize(torch.randn(n, d, device=device), dim=1).to(dtype) for _ in range(2))
    sets = {"denominator": Pairs.OTHERS, "positives": Pairs.POSITIVE}
    return problem_of(Points(x), Points(y), 10.0, sets, None, None, None, False)


def main(argv: Sequence[str] | None = None) -> int:
    summary = (__doc__ or "").split(":")[0]
    parser = argparse.ArgumentParser(prog="python -m pycl.triton_kernels.tune", description=summary)
    parser.add_argument("--features", type=lambda text: [int(d) for d in text.split(",")], default=[128, 256, 512])
    parser.add_argument("--points", type=int, default=32768)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("tuning needs a GPU")
    from triton.testing import do_bench

    for d in options.features:
        problem = problem_for(options.points, d, DTYPES[options.dtype], "cuda")
        itemsize = problem.rows.itemsize
        for kernel in ("reduce", "own" if itemsize == 2 and d <= 256 else "store"):
            choices = list(candidates(kernel, itemsize, d))
            tile, took = fastest(kernel, problem, choices, lambda run: float(do_bench(run, return_mode="median")))
            tiles.remember(kernel, device_of(problem.rows).architecture, itemsize, d, tile)
            print(f"{kernel} d={d} {options.dtype}: {tile} {took:.3f} ms")
    print(f"written to {tiles.cache_file()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
