# SPDX-License-Identifier: Apache-2.0
"""A model of the time of a loss on one H200, from what the compiler reports. It predicts; nothing here was measured.

A tile of P pairs and d features keeps a multiprocessor busy for, in clocks:

    product    2 d P / 3520, twice that where the gradient is summed, too: 790 TFLOP/s, which power allows of 919
    epilogue   the largest of: slots P / 128 (issue), exponentials P / 16, shuffles P / 32; counted in the SASS
    copies     2 d (cols, and rows where they are not kept) bytes / 32, from the second-level cache

With R > 1 programs on a multiprocessor one's product runs during another's epilogue: a tile takes the largest of the
three and of (product + epilogue) / R. With one program its two groups of four warps share every buffer and drift apart
by less than a tile: half of the smaller of product and epilogue is taken to be hidden. With one group nothing is.

The strips of weights of a backward with d > 256 are written at 4.3 TB/s or computed, whichever takes longer, and read
by products of 700 TFLOP/s. Those of the columns add every strip to float32 sums [n, d], which are read and written
each time, at 4.3 TB/s and after the product. 132 multiprocessors at 1.7 GHz.

A launch costs the host 15 us, measured with a driver that runs nothing. Where that is longer it is what the loss takes.
Left out are preparation, the combining of partial sums, the partial tiles of the diagonal and the last wave. All of
that makes the times lower bounds, as far as the halves are right. The roof is 790 TFLOP/s of the minimum of work:
8 N^2 d for two sides, 4 N^2 d for one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pycl.backends.triton.launch import Launch
from pycl.tools.ahead_of_time import Compiled

ARCHITECTURE, PROCESSORS, CLOCK = 90, 132, 1.7e9
FLOPS, EXPONENTIALS, SHUFFLES, ISSUES, CACHE = 3520, 16, 32, 128, 32  # a clock and multiprocessor; CACHE in bytes
MEMORY, LIBRARY, ROOF = 4.3e12, 700e12, 790e12
HOST = 15e-6  # seconds a launch: ``make host-time``


HEAD = (
    *("loss", "d", "kernel", "product, clocks a tile", "epilogue", "copies", "programs", "predicted ms"),
    *("forward and backward, ms", "share of the roof"),
)


class Sweep(NamedTuple):
    """One kernel over all of its pairs."""

    kernel: str
    milliseconds: float
    product: float  # clocks of a tile
    epilogue: float
    copies: float
    programs: int


def sweep_of(compiled: Compiled, d: int, pairs: float) -> Sweep:
    """d is the launch's: others may have been compiled to the same code."""
    assert compiled.loop is not None
    options, own = compiled.options, compiled.kernel == "backward_dx_kernel"
    rows, cols, in_tile = options["BM"], options["BN"], options["BM"] * options["BN"]
    product = (4 if own else 2) * d * in_tile / FLOPS
    slots, exponentials, shuffles, _ = compiled.loop
    epilogue = in_tile * max(slots / ISSUES, exponentials / EXPONENTIALS, shuffles / SHUFFLES)
    on_chip = own or (options["ALL_FEATURES"] and compiled.kernel == "forward_kernel")
    copies = 2 * d * (cols if on_chip else cols + rows) / CACHE
    programs, groups = compiled.programs, options["num_warps"] // 4
    if programs > 1:
        clocks = max(product, epilogue, copies, (product + epilogue) / programs)
    else:
        hidden = 0.5 if groups > 1 else 0.0
        clocks = max(product + epilogue - hidden * min(product, epilogue), copies)
    seconds = pairs / in_tile * clocks / PROCESSORS / CLOCK
    if compiled.kernel == "write_weights_kernel":
        seconds = max(seconds, 2 * pairs / MEMORY)
    return Sweep(compiled.kernel, 1e3 * seconds, product, epilogue, copies, programs)


def sweeps_of(launches: Iterable[tuple[Launch, Compiled]]) -> list[Sweep]:
    """One line for all launches of a kernel, and one for the library's products with what it stored."""
    found: dict[str, Sweep] = {}
    for launch, compiled in launches:
        of = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
        cols = of["n"]
        if launch.options.get("SYMMETRIC"):
            cols -= of["first_row"] + of["rows_here"] / 2
        sweep = sweep_of(compiled, of["d"], of["rows_here"] * cols)
        before = found.get(sweep.kernel)
        found[sweep.kernel] = sweep._replace(milliseconds=sweep.milliseconds + (before.milliseconds if before else 0))
    return list(found.values())


def products(strips: int, n: int, d: int, sides: int) -> Sweep:
    """The products with stored weights [n, n], one for each side, a strip at a time."""
    seconds = sides * max(2 * n * n * d / LIBRARY, 2 * n * n / MEMORY)
    if sides == 2:
        seconds += 2 * strips * 4 * n * d / MEMORY
    return Sweep("library's products", 1e3 * seconds, 0, 0, 0, 0)


def of_host(launches: int) -> float:
    """Milliseconds that the host needs for so many launches."""
    return 1e3 * launches * HOST


def share_of_roof(milliseconds: float, n: int, d: int, sides: int) -> float:
    return 4 * sides * n * n * d / (1e-3 * milliseconds) / ROOF


def cells(sweep: Sweep) -> tuple[str, ...]:
    clocks = (f"{sweep.product:.0f}", f"{sweep.epilogue:.0f}", f"{sweep.copies:.0f}", str(sweep.programs))
    return sweep.kernel, *(clocks if sweep.programs else ("",) * 4), f"{sweep.milliseconds:.2f}"
