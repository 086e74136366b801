# SPDX-License-Identifier: Apache-2.0
"""The rate of the three products of a step on a CPU, beside ``torch.mm`` and NumPy: ``python -m pycl.bench.products``.

Runs in a checkout, whose ``csrc/cpu`` it compiles for the instruction set that pycl chose. ``pycl.bench.products
docs/benchmarks.md`` writes the table between the page's marks. Two threads are two processes at once, for every
provider alike, each with sides of its own: the products share nothing but the machine.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing as mp
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .present.page import write_or_print
from .present.record import new_record
from .present.tables import header

SOURCES = Path(__file__).resolve().parent.parent
SIZES = (64, 128, 256, 512, 768, 1024)
N, BLOCK = 2304, 192  # points of each side, and of a tile: those of a large batch
PRODUCTS = ("S = X Yᵀ", "W Y", "Wᵀ X")
FLAGS = {
    "avx2": ("32", "-mavx2 -mfma -mf16c"),
    "avx512": ("64", "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mprefer-vector-width=512"),
}
ROUNDS = 7


@functools.cache
def compiled(isa: str) -> ctypes.CDLL:
    """The products of this checkout; raises RuntimeError where they cannot be compiled."""
    compiler, headers = os.environ.get("CXX", "g++"), SOURCES / "csrc" / "cpu"
    if not headers.exists() or not shutil.which(compiler):
        raise RuntimeError(f"takes a checkout with {headers} and a C++ compiler, {compiler}")
    with tempfile.TemporaryDirectory() as folder:  # what is loaded outlives its file
        return _loaded(isa, compiler, headers, Path(folder) / "products.so")


def _loaded(isa: str, compiler: str, headers: Path, library: Path) -> ctypes.CDLL:
    width, flags = FLAGS[isa]
    always = "-std=c++17 -O3 -shared -fPIC -ffp-contract=fast -fno-math-errno -Wno-psabi"
    command = [compiler, *always.split(), *flags.split(), f"-DPRODUCTS_VECTOR_BYTES={width}", f"-I{headers}"]
    subprocess.run([*command, str(Path(__file__).with_suffix(".cpp")), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.sides_of.restype = ctypes.c_void_p
    loaded.sides_of.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    loaded.multiply_tiles.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return loaded


def providers(library: ctypes.CDLL, d: int) -> dict[str, list[Callable[[], Any]]]:
    """The three products of each provider, on one thread."""
    x, y, w = torch.randn(N, d), torch.randn(N, d), torch.randn(N, N)
    a, b, v = x.numpy(), y.numpy(), w.numpy()
    sides = library.sides_of(x.data_ptr(), y.data_ptr(), N, d, BLOCK)
    return {
        "pycl": [functools.partial(library.multiply_tiles, sides, which, 0, 1) for which in range(3)],
        "torch": [lambda: torch.mm(x, y.T), lambda: torch.mm(w, y), lambda: torch.mm(w.T, x)],
        "numpy": [lambda: np.matmul(a, b.T), lambda: np.matmul(v, b), lambda: np.matmul(v.T, a)],
    }


def rates(isa: str, d: int) -> dict[str, list[float]]:
    """GFLOP/s of the products of each provider, which take turns; medians."""
    torch.set_num_threads(1)
    found = providers(compiled(isa), d)
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(ROUNDS + 1):
        for name, products in found.items():
            for which, product in enumerate(products):
                start = time.perf_counter()
                product()
                if turn:
                    times.setdefault((name, which), []).append(time.perf_counter() - start)
    work = 2 * N * N * d / 1e9
    return {name: [work / statistics.median(times[name, which]) for which in range(3)] for name in found}


def table(isa: str) -> str:
    """Rows of feature sizes for one process and for two at once."""
    lines = [
        "| d | processes | " + " | ".join(f"{p}: pycl / torch / numpy" for p in PRODUCTS) + " | least share of numpy |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    context = mp.get_context("spawn")
    for count in (1, 2):
        with context.Pool(count) as pool:
            for d in SIZES:
                each = pool.starmap(rates, [(isa, d)] * count)
                total = {name: [sum(r[name][k] for r in each) for k in range(3)] for name in each[0]}
                cells = [" / ".join(f"{total[name][k]:.0f}" for name in ("pycl", "torch", "numpy")) for k in range(3)]
                share = min(total["pycl"][k] / total["numpy"][k] for k in range(3))
                lines.append(f"| {d} | {count} | {' | '.join(cells)} | {share:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the table, or write it into a page; 2 where nothing can be measured."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    record = new_record("products", "python -m pycl.bench.products")
    isa = "avx512" if record["cpu"]["isa"].startswith(("avx512", "amx")) else record["cpu"]["isa"]
    if isa not in FLAGS:
        print(f"pycl.bench.products: has no flags for instruction set {isa}", file=sys.stderr)
        return 2
    try:
        found = table(isa)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"pycl.bench.products: {error}", file=sys.stderr)
        return 2
    title = f"GFLOP/s of float32 products, {N} points a side, NumPy {np.__version__}; medians"
    body = f"{title}:\n\n{found}\n\n*{header(record)}.*"
    write_or_print(arguments, "products", body)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
