# SPDX-License-Identifier: Apache-2.0
"""The tile of each kernel by architecture, element size and number of features.

Provenance: chosen from what the compilers of Triton 3.6.0 and 3.7.1 report (``python -m pycl.tools.triton_report``:
registers, spills in loops, shared memory, programs on a multiprocessor) and the model of time a tile in that report.
No GPU has measured them yet.

On Hopper two programs of four warps share a multiprocessor wherever they fit, so that one's products run during the
other's exponentials. Where they do not, in the forward beyond 128 features, one program of eight warps takes the tile.
Reports say that ptxas 12.8 miscompiles kernels of several products with blocks of 32 there: pieces have 64 columns
where registers allow, and 32 in the forward and in strips, which have one product, and in the gradients of 129 to 256
features.
"""

from __future__ import annotations

from typing import NamedTuple


class TileConfig(NamedTuple):
    rows: int
    cols: int
    depth: int  # features a product takes at once; a block that holds all of them stays on chip
    warps: int
    stages: int
    occupancy: int = 1  # programs that fit on a multiprocessor together
    piece: int = 32  # columns at once where single pairs are looked at: the labels of more do not fit in registers
    fold: int = 2  # columns 8 apart that a thread holds where they are a product's first operand: 1 from tensor memory

    def holds(self, d: int) -> bool:
        """Whether one block has all features."""
        return d <= self.depth

    def with_modifiers(self) -> TileConfig:
        """What a problem with modifiers takes: beside a pair's logit a thread then holds labels, sums and addresses."""
        return self._replace(
            rows=min(self.rows, 64),
            cols=min(self.cols, 64),
            piece=min(self.piece, 32),
            warps=8,
            stages=min(self.stages, 2),
        )

    def options(self) -> dict[str, int]:
        """As a kernel takes them."""
        blocks = {"BM": self.rows, "BN": self.cols, "BP": self.piece, "BK": self.depth}
        return blocks | {"num_warps": self.warps, "num_stages": self.stages}


# (kernel, bytes an element, most features) -> tile, by the oldest architecture the column is for. The first row that
# is large enough counts. Kernels are named without their ``_kernel``. Where backward_dx has no tile, the backward goes
# by strips.
_UNBOUNDED = 1 << 30
_HOPPER = {
    ("forward", 2, 64): TileConfig(128, 64, 64, 4, 3, 2),
    ("forward", 2, 128): TileConfig(128, 64, 128, 4, 3, 2),
    ("forward", 2, 256): TileConfig(128, 128, 256, 8, 2),
    ("forward", 2, _UNBOUNDED): TileConfig(128, 128, 64, 8, 3),
    ("forward", 4, _UNBOUNDED): TileConfig(64, 64, 16, 8, 3),
    ("backward_dx", 2, 64): TileConfig(64, 128, 64, 4, 3, 2, piece=64),
    ("backward_dx", 2, 128): TileConfig(64, 128, 128, 4, 2, 2, piece=64),
    ("backward_dx", 2, 256): TileConfig(64, 64, 256, 4, 2, 2),
    ("write_weights", 2, _UNBOUNDED): TileConfig(128, 128, 64, 8, 3),
    ("write_weights", 4, _UNBOUNDED): TileConfig(64, 64, 16, 8, 3),
}
# Products of a deep block hold many descriptors: beside them wide tiles do not fit in registers. A thread reads one row
# of a product from tensor memory, of 64 rows at least: blocks of columns are the first operand, so they have as many.
_BLACKWELL = {
    ("forward", 2, 64): TileConfig(128, 64, 64, 8, 3, fold=1),
    ("forward", 2, 128): TileConfig(128, 64, 128, 8, 3, fold=1),
    ("forward", 2, _UNBOUNDED): TileConfig(64, 64, 64, 8, 3, fold=1),
    ("forward", 4, _UNBOUNDED): TileConfig(64, 64, 16, 8, 3),
    ("backward_dx", 2, 64): TileConfig(64, 64, 64, 4, 3, 2),
    ("backward_dx", 2, 128): TileConfig(128, 128, 128, 8, 2),
    ("write_weights", 2, _UNBOUNDED): TileConfig(128, 64, 64, 8, 3),
    ("write_weights", 4, _UNBOUNDED): TileConfig(64, 64, 16, 4, 3, 2),
}
_AMPERE = {
    ("forward", 2, 64): TileConfig(64, 64, 64, 4, 3, 2),
    ("forward", 2, 128): TileConfig(128, 64, 128, 8, 2),
    ("forward", 2, _UNBOUNDED): TileConfig(128, 64, 32, 8, 3),
    ("forward", 4, _UNBOUNDED): TileConfig(64, 32, 16, 8, 3),
    ("backward_dx", 2, 64): TileConfig(64, 64, 64, 4, 3, 2),
    ("backward_dx", 2, 128): TileConfig(128, 32, 128, 8, 3),
    ("write_weights", 2, _UNBOUNDED): TileConfig(128, 128, 32, 8, 3),
    ("write_weights", 4, _UNBOUNDED): TileConfig(32, 32, 16, 4, 3, 3),
}
# 99 KB, which Ampere's tiles fit in, but for one
_CONSUMER_BLACKWELL = _AMPERE | {("forward", 2, 128): TileConfig(128, 64, 32, 8, 3)}
_INTERPRETER = {  # large: its time is that of the number of operations, not of their size
    ("forward", 2, 32): TileConfig(128, 128, 32, 4, 1, piece=128),
    ("forward", 2, _UNBOUNDED): TileConfig(128, 128, 64, 4, 1, piece=128),
    ("forward", 4, 16): TileConfig(128, 128, 16, 4, 1, piece=128),
    ("forward", 4, _UNBOUNDED): TileConfig(128, 128, 64, 4, 1, piece=128),
    ("backward_dx", 2, 64): TileConfig(128, 128, 64, 4, 1, piece=128),
    ("write_weights", 2, _UNBOUNDED): TileConfig(128, 128, 64, 4, 1, piece=128),
    ("write_weights", 4, _UNBOUNDED): TileConfig(128, 128, 64, 4, 1, piece=128),
}
TABLES = {0: _INTERPRETER, 80: _AMPERE, 90: _HOPPER, 100: _BLACKWELL, 120: _CONSUMER_BLACKWELL}
