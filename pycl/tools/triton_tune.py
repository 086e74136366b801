# SPDX-License-Identifier: Apache-2.0
"""Find the fastest tiles on this GPU: ``python -m pycl.tools.triton_tune --features 128,256 [--points 32768]``.

At most thirty tiles like that of the table run the sweep they are for, on random unit vectors; each in a process of its
own, so that a fault or a hang costs one tile. The fastest goes to ``tiles.cache_file()``, where every later process
finds it. Nothing is ever tuned without being asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from math import log2

import torch

from pycl.backends.triton import tiles
from pycl.backends.triton.device import device_of
from pycl.tools import ahead_of_time, triton_tile_time
from pycl.triton_kernels.interpreter import INTERPRETED
from pycl.triton_kernels.tile_table import TileConfig

DTYPES = ("bfloat16", "float16", "float32")
MOST = 30  # tiles of a kernel
MOST_SUMS = 192  # of a thread's 255 registers


def candidates(kernel: str, arch: int, itemsize: int, d: int) -> list[TileConfig]:
    """Tiles that differ from the one in use by a step or two and keep the tables' rules, the nearest first."""
    base = tiles.pick(kernel, arch, itemsize, d)
    if base is None:
        return []
    around = ([size // 2, size, 2 * size] for size in (base.rows, base.cols, base.depth))
    found = {}
    for rows, cols, depth, warps, more in product(*around, (4, 8), (-1, 0, 1)):
        tile = TileConfig(rows, cols, depth, warps, base.stages + more, piece=min(base.piece, cols), fold=base.fold)
        ratios = rows / base.rows, cols / base.cols, depth / base.depth
        steps = sum(abs(log2(ratio)) for ratio in ratios) + abs(more) + (warps != base.warps)
        if steps <= 2 and _keeps_the_rules(kernel, arch, itemsize, d, tile):
            found[tile] = steps, depth != base.depth
    return sorted(found, key=lambda tile: found[tile])[:MOST]


def _keeps_the_rules(kernel: str, arch: int, itemsize: int, d: int, tile: TileConfig) -> bool:
    """Those of the tables, and what can be seen not to fit without a look at the compiler."""
    limit = ahead_of_time.SHARED[
        max(known for known in ahead_of_time.SHARED if known <= max(arch, min(ahead_of_time.SHARED)))
    ]
    whole = max(16, 1 << (d - 1).bit_length())
    if min(tile.rows, tile.cols) < 32 or not 16 <= tile.depth <= (32 if itemsize == 4 else whole) or tile.stages < 1:
        return False
    sums = tile.rows * (tile.cols + tile.depth * (kernel == "backward_dx")) / (32 * tile.warps)
    if (tile.rows + tile.stages * tile.cols) * tile.depth * itemsize > limit or sums > MOST_SUMS:
        return False
    # symmetric problems need rows in multiples of columns
    return tile.holds(d) if kernel == "backward_dx" else kernel != "forward" or tile.rows % tile.cols == 0


def time_of(kernel: str, n: int, d: int, dtype: str, tile: TileConfig, limit: float) -> tuple[TileConfig, float]:
    """Of ``triton_tile_time``, in a process killed after ``limit`` seconds; raises RuntimeError where there is none."""
    asked = json.dumps([kernel, n, d, dtype, tile])
    command = [sys.executable, "-m", triton_tile_time.__name__, asked]
    here = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, env=here, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {limit:g} seconds") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(said[-1])
    tile, milliseconds = json.loads(done.stdout.splitlines()[-1])
    return TileConfig(*tile), milliseconds


def fastest(
    choices: Iterable[TileConfig], time: Callable[[TileConfig], tuple[TileConfig, float]]
) -> tuple[TileConfig, float]:
    """The tile that takes least, and what it takes; raises RuntimeError where none runs."""
    found: list[tuple[float, TileConfig]] = []
    for choice in choices:
        try:
            tile, took = time(choice)
        except RuntimeError as error:
            print(f"  {choice}: {error}", file=sys.stderr)
            continue
        print(f"  {tile}: {took:.3f} ms", file=sys.stderr)
        found.append((took, tile))
    if not found:
        raise RuntimeError("no tile ran")
    took, tile = min(found)
    return tile, took


def main(argv: Sequence[str] | None = None) -> int:
    summary = (__doc__ or "").split(":")[0]
    parser = argparse.ArgumentParser(prog="python -m pycl.tools.triton_tune", description=summary)
    parser.add_argument("--features", type=lambda text: [int(d) for d in text.split(",")], default=[128, 256, 512])
    parser.add_argument("--points", type=int, default=32768)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--limit", type=float, default=90, help="seconds for a tile, compiling included (default: 90)")
    options = parser.parse_args(argv)
    if not (INTERPRETED or torch.cuda.is_available()):
        parser.error("tuning needs a GPU")
    itemsize, arch = getattr(torch, options.dtype).itemsize, device_of(triton_tile_time.DEVICE).architecture
    for d in options.features:
        for kernel in ("forward", "backward_dx" if tiles.pick("backward_dx", arch, itemsize, d) else "write_weights"):
            choices = candidates(kernel, arch, itemsize, d)
            time = partial(time_of, kernel, options.points, d, options.dtype, limit=options.limit)
            tile, took = fastest(choices, time)
            tiles.remember(kernel, arch, itemsize, d, tile)
            print(f"{kernel} d={d} {options.dtype}: {tile} {took:.3f} ms, of {len(choices)} tiles")
    print(f"written to {tiles.cache_file()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
