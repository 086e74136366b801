# SPDX-License-Identifier: Apache-2.0
"""The ways to compile a kernel: as it is, and those that a case which fails is tried with to learn why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

VARIABLE = "PYCL_FIRST_BUILD"
PTXAS = "TRITON_PTXAS_PATH"


class Build(NamedTuple):
    says: str  # what is to blame where it mends a case
    ptxas: bool = False  # the newer one
    piece: int | None = None  # columns at once of a mixed tile
    stages: int | None = None  # of the pipeline


BUILDS = {
    "default": Build("nothing"),
    "ptxas": Build("the ptxas that Triton bundles", ptxas=True),
    "piece": Build("products of 32 columns", piece=64),
    "stage": Build("the pipeline of loads", stages=1),
}


def environment(name: str, ptxas: Path) -> dict[str, str]:
    """What a process that uses this build has in its environment."""
    return {VARIABLE: name} | ({PTXAS: str(ptxas)} if BUILDS[name].ptxas else {})


def apply() -> None:
    """Change the tiles of this process as ``$PYCL_FIRST_BUILD`` says."""
    build = BUILDS[os.environ.get(VARIABLE, "default")]
    if build.piece is None and build.stages is None:
        return
    from pycl.backends.triton import tiles
    from pycl.triton_kernels.tile_table import TileConfig

    pick = tiles.pick

    def changed(kernel: str, arch: int, itemsize: int, d: int) -> TileConfig | None:
        tile = pick(kernel, arch, itemsize, d)
        if tile is None:
            return None
        piece = tile.piece if build.piece is None else min(build.piece, tile.cols)
        return tile._replace(piece=piece, stages=tile.stages if build.stages is None else build.stages)

    tiles.pick = changed
