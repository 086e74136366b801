# SPDX-License-Identifier: Apache-2.0
"""The largest logits of every row, on the host's side: the tile of a search, its portions, its keys unpacked."""

from __future__ import annotations

import torch
from torch import Tensor

from pycl.triton_kernels.tile_table import Tile
from pycl.triton_kernels.topk import LAST


def tile_from(tile: Tile, d: int) -> Tile:
    """The tile of a search for features d from that of a reduction.

    Narrow: 64 keys of a row and 128 columns do not fit in the registers of sm_80 and sm_100, and the more pairs a tile
    has, the more often one row holds up the others. Short where all features are at hand: nothing loads ahead of the
    search's loop, so other programs have to fill the wait for the next block.
    """
    rows, warps = (64, 4) if tile.holds(d) else (128, 8)
    return tile._replace(
        rows=min(tile.rows, rows), cols=min(tile.cols, 64), piece=min(tile.piece, 64), warps=warps, resident=2
    )


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The logits in float32 and the columns in int64 of int64 keys [m, k]; -inf and -1 where there is no candidate."""
    low, high = keys.view(torch.int32).unflatten(1, (-1, 2)).unbind(2)  # as a little-endian machine has them
    values = (high ^ ((high >> 31) & LAST.value)).view(torch.float32)
    return values, (low ^ LAST.value).clamp_(min=-1).to(torch.int64)
