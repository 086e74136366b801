# SPDX-License-Identifier: Apache-2.0
"""The tile of each kernel by architecture, element size and number of features.

Provenance: chosen from what the compiler reports (``python -m pycl.triton_kernels.report``: registers, spills, shared
memory against that of the architecture) and the model of time a tile in that report. No GPU has measured them yet.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from ..backends import BackendUnavailable


class Tile(NamedTuple):
    rows: int
    cols: int
    depth: int  # features a product takes at once; a block that holds all of them stays on chip
    warps: int
    stages: int
    resident: int = 1  # programs that fit on a multiprocessor together
    piece: int = 32  # columns at once where single pairs are looked at: the labels of more do not fit in registers
    fold: int = 2  # columns 8 apart that a thread holds where they are a product's first operand: 1 from tensor memory

    def holds(self, d: int) -> bool:
        """Whether one block has all features."""
        return d <= self.depth

    def options(self) -> dict[str, int]:
        """As a kernel takes them."""
        blocks = {"BM": self.rows, "BN": self.cols, "BP": self.piece, "BK": self.depth}
        return blocks | {"num_warps": self.warps, "num_stages": self.stages}


# (kernel, bytes an element, most features) -> tile, by the oldest architecture the column is for. The first row that
# is large enough counts. reduce: forward. own: backward with the gradient in registers; where there is none the
# backward goes by strips. biased: the same for logits with biases, whose sums need registers, too. store: a strip of
# weights, a matrix of logits.
_UNBOUNDED = 1 << 30
_HOPPER = {
    ("reduce", 2, 64): Tile(128, 128, 64, 8, 3),
    ("reduce", 2, 128): Tile(128, 128, 128, 8, 3),
    ("reduce", 2, 256): Tile(128, 128, 256, 8, 2),
    ("reduce", 2, _UNBOUNDED): Tile(128, 128, 64, 8, 3),
    ("reduce", 4, _UNBOUNDED): Tile(64, 64, 16, 8, 3),
    ("own", 2, 64): Tile(64, 64, 64, 4, 3, 3),
    ("own", 2, 128): Tile(128, 128, 128, 8, 2),
    ("own", 2, 256): Tile(128, 64, 256, 8, 2),
    ("biased", 2, 64): Tile(64, 64, 64, 4, 3, 2),
    ("biased", 2, 128): Tile(128, 64, 128, 8, 3),
    ("biased", 2, 256): Tile(128, 32, 256, 8, 2),
    ("store", 2, _UNBOUNDED): Tile(128, 128, 64, 8, 3),
    ("store", 4, _UNBOUNDED): Tile(64, 64, 16, 8, 3),
}
_BLACKWELL = {  # products of a deep block hold many descriptors: beside them wide tiles do not fit in registers
    ("reduce", 2, 64): Tile(128, 128, 64, 8, 3),
    ("reduce", 2, 128): Tile(128, 32, 128, 8, 3),
    ("reduce", 2, _UNBOUNDED): Tile(64, 64, 64, 8, 3),
    ("reduce", 4, _UNBOUNDED): Tile(64, 64, 16, 8, 3),
    ("own", 2, 64): Tile(64, 64, 64, 4, 3, 2),
    ("own", 2, 128): Tile(128, 128, 128, 8, 2),
    ("store", 2, _UNBOUNDED): Tile(128, 64, 64, 8, 3),
    ("store", 4, _UNBOUNDED): Tile(64, 64, 16, 4, 3, 2),
}
_AMPERE = {
    ("reduce", 2, 64): Tile(64, 64, 64, 4, 3, 2),
    ("reduce", 2, 128): Tile(128, 64, 128, 8, 2),
    ("reduce", 2, _UNBOUNDED): Tile(128, 64, 32, 8, 3),
    ("reduce", 4, _UNBOUNDED): Tile(64, 32, 16, 8, 3),
    ("own", 2, 64): Tile(64, 64, 64, 4, 3, 2),
    ("own", 2, 128): Tile(128, 64, 128, 8, 2),
    ("store", 2, _UNBOUNDED): Tile(128, 128, 32, 8, 3),
    ("store", 4, _UNBOUNDED): Tile(32, 32, 16, 4, 3, 3),
}
# 99 KB, which Ampere's tiles fit in; the statistics of logits with scales of their own and biases still spill 20 to 208
# bytes here, whatever the tile
_CONSUMER_BLACKWELL = _AMPERE | {("reduce", 2, 128): Tile(128, 64, 32, 8, 3)}
_INTERPRETER = {  # large: its time is that of the number of operations, not of their size
    ("reduce", 2, 32): Tile(128, 128, 32, 4, 1, piece=128),
    ("reduce", 2, _UNBOUNDED): Tile(128, 128, 64, 4, 1, piece=128),
    ("reduce", 4, 16): Tile(128, 128, 16, 4, 1, piece=128),
    ("reduce", 4, _UNBOUNDED): Tile(128, 128, 64, 4, 1, piece=128),
    ("own", 2, 64): Tile(128, 128, 64, 4, 1, piece=128),
    ("store", 2, _UNBOUNDED): Tile(128, 128, 64, 4, 1, piece=128),
    ("store", 4, _UNBOUNDED): Tile(128, 128, 64, 4, 1, piece=128),
}
TABLES = {0: _INTERPRETER, 80: _AMPERE, 90: _HOPPER, 100: _BLACKWELL, 120: _CONSUMER_BLACKWELL}


Key = tuple[str, int, int, int]  # kernel, architecture, bytes an element, features rounded up to a power of two


def key_of(kernel: str, arch: int, itemsize: int, d: int) -> Key:
    return kernel, arch, itemsize, 1 << (d - 1).bit_length()


def cache_file() -> Path:
    """Where ``python -m pycl.triton_kernels.tune`` leaves what it found: ``$PYCL_TILES``, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PYCL_TILES") or cache / "pycl" / "tiles.json")


def load() -> dict[Key, Tile]:
    """Tiles found by tuning on this machine; none where nobody asked for it."""
    if not cache_file().exists():
        return {}
    try:
        entries = json.loads(cache_file().read_text())
        return {(kernel, arch, size, d): Tile(*tile) for kernel, arch, size, d, tile in entries}
    except (ValueError, TypeError) as error:
        reason = f"{cache_file()} holds no tiles ({error}); delete it or tune again"
        raise BackendUnavailable(f"backend='triton' is not available: {reason}") from error


def remember(kernel: str, arch: int, itemsize: int, d: int, tile: Tile) -> None:
    """Use the tile from now on, here and in later processes."""
    TUNED[key_of(kernel, arch, itemsize, d)] = tile
    cache_file().parent.mkdir(parents=True, exist_ok=True)
    cache_file().write_text(json.dumps([[*key, list(found)] for key, found in sorted(TUNED.items())], indent=1) + "\n")


TUNED = load()


def pick(kernel: str, arch: int, itemsize: int, d: int) -> Tile | None:
    """The tile for operands of ``itemsize`` bytes with d features on sm_``arch`` (0: the interpreter)."""
    if (tuned := TUNED.get(key_of(kernel, arch, itemsize, d))) is not None:
        return tuned
    table = TABLES[max(known for known in TABLES if known <= arch)]
    rows = ((most, tile) for (name, size, most), tile in table.items() if (name, size) == (kernel, itemsize))
    found = next((tile for most, tile in rows if d <= most), None)
    return pick("own", arch, itemsize, d) if found is None and kernel == "biased" else found
