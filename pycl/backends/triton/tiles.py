# SPDX-License-Identifier: Apache-2.0
"""Which tile a launch takes: one that tuning found on this machine, or that of the table."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pycl.backends.registry import BackendUnavailable
from pycl.triton_kernels.tile_table import TABLES, TileConfig

Key = tuple[str, int, int, int]  # kernel, architecture, bytes an element, features rounded up to a power of two


def key_of(kernel: str, arch: int, itemsize: int, d: int) -> Key:
    return kernel, arch, itemsize, 1 << (d - 1).bit_length()


def cache_file() -> Path:
    """Where ``python -m pycl.tools.triton_tune`` leaves what it found: ``$PYCL_TILES``, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PYCL_TILES") or cache / "pycl" / "tiles.json")


def load() -> dict[Key, TileConfig]:
    """Tiles found by tuning on this machine; none where nobody asked for it."""
    if not cache_file().exists():
        return {}
    try:
        entries = json.loads(cache_file().read_text())
        return {(kernel, arch, size, d): TileConfig(*tile) for kernel, arch, size, d, tile in entries}
    except (ValueError, TypeError) as error:
        reason = f"{cache_file()} holds no tiles ({error}); delete it or tune again"
        raise BackendUnavailable(f"backend='triton' is not available: {reason}") from error


def remember(kernel: str, arch: int, itemsize: int, d: int, tile: TileConfig) -> None:
    """Use the tile from now on, here and in later processes."""
    TUNED[key_of(kernel, arch, itemsize, d)] = tile
    cache_file().parent.mkdir(parents=True, exist_ok=True)
    cache_file().write_text(json.dumps([[*key, list(found)] for key, found in sorted(TUNED.items())], indent=1) + "\n")


TUNED = load()


def pick(kernel: str, arch: int, itemsize: int, d: int) -> TileConfig | None:
    """The tile for operands of ``itemsize`` bytes with d features on sm_``arch`` (0: the interpreter)."""
    if (tuned := TUNED.get(key_of(kernel, arch, itemsize, d))) is not None:
        return tuned
    table = TABLES[max(known for known in TABLES if known <= arch)]
    rows = ((most, tile) for (name, size, most), tile in table.items() if (name, size) == (kernel, itemsize))
    return next((tile for most, tile in rows if d <= most), None)
